"""Batching parts: what a pass holds. Rows are admitted already; this is about their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from batchgen.policy.admission import expected_outputs
from batchgen.policy.base import BatchingPart, Part
from batchgen.policy.options import MOST_TOKENS, option

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank


class Chunks(BatchingPart):
    """Decodes first, then prompts in admission order, cut to fill the token budget (Sarathi,
    vLLM)."""


class WholePrompts(BatchingPart):
    """Prompts run whole, beside the decodes, as many as the token budget holds (Orca). Decodes
    count: the first prompt is cut if it exceeds what they leave."""

    whole = True


class StaticPrompts(WholePrompts):
    """Prompts run whole, padded to the longest of the pass; rows that ended keep their place and
    their pages, as dead weight, until the last row of the batch has ended."""

    static = True
    needs: ClassVar[frozenset[str]] = frozenset({"padding"})


class PacedChunks(Chunks):
    """Prompts last as long as decodes: a pass holds as large a part of all tokens that are left to
    compute as it reads of the KV tokens that are left to read, and at least `least_tokens`, decodes
    included. What is left is what the plan of the order part says; without one, `chunks`. Rows that
    such a part deals from the rear are not paced.

    Where attention overlaps with the rest, time is the longer of both, so every pass should have
    the ratio of the whole load. Fewer tokens than `least_tokens` take no less time than these, as
    all weights are read anyway.
    """

    changes = "pass"
    paces = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        least_tokens: int = option(128, least=1, most=MOST_TOKENS)

    def pace(self, engine: EngineMachine, rank: Rank) -> int:
        compute, read = rank.planned_work()
        if not read:
            return engine.token_budget
        table = rank.table
        running = np.fromiter(rank.running, np.int64, len(rank.running))
        known = table.offset[running] + engine.k
        produced = known - table.prompt[running] + 1
        rest = np.maximum(expected_outputs(table, running) - produced, 1)
        compute += int(rest.sum())
        read += int((rest * known + rest * rest // 2).sum())
        tokens = compute * int(known.sum()) // read
        return max(tokens, int(self.config.least_tokens)) - len(running)
