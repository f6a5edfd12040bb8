"""Batching parts: what a step holds. Rows are admitted already; this cuts prompts into chunks."""

from __future__ import annotations

from typing import Any

from batchgen.memory.pool import FOREVER
from batchgen.policy.base import EnginePart
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine


class BatchingPart(EnginePart):
    """Batching parts also say whether a finish may change what the next pass should hold."""

    def finish_matters(self, view: Engine) -> bool:
        """True: the step ends at the first finish. False: finished rows just leave."""
        return bool(view.num_waiting or view.num_prefilling)

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER  # chunk ends limit the step by themselves


class Chunks(BatchingPart):
    """Decodes first, then prompts in admission order, cut to fill the token budget (Sarathi,
    vLLM)."""

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        left = draft.tokens_left
        for row in draft.rank.prefilling:
            if left <= 0:
                return
            need = draft.prompt_left(row)
            size = min(need, left)
            last = size == need
            draft.chunks.append((row, draft.table.v_computed[row], size, last))
            # A prompt that takes the whole budget does so, unchanged, until less than one chunk
            # is left; anything else changes the composition in the next pass.
            only = size == draft.tokens_left
            draft.passes = min(draft.passes, (need - 1) // size if only and not last else 1)
            left -= size


class WholePrompts(BatchingPart):
    """Prompts run whole, beside the decodes, all that are admitted (Orca)."""

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        for row in draft.rank.prefilling:
            need = draft.prompt_left(row)
            draft.chunks.append((row, draft.table.v_computed[row], need, True))
            draft.passes = 1


class StaticPrompts(WholePrompts):
    """Whole prompts; a finished row never changes the batch."""

    def finish_matters(self, view: Engine) -> bool:
        return False


class ByPhase(Chunks):
    """BatchGen: prefill passes hold chunks only, decode passes decodes only, until the boundary."""

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        if view.phase == "prefill":
            super().decide(view, draft, state)

    def finish_matters(self, view: Engine) -> bool:
        return False
