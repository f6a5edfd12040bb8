"""What a backend of attention is.

Once per pass `prepare` turns rows into whatever the backend wants on its device; then `run` is
called once per layer with tensors alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import PassRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How the heads of one layer attend, beside what the shapes of queries and KV say.

    Scores are `scale` times the products. `window`: a token sees itself and the window - 1 tokens
    before it; 0: all. `sinks` [N] float32: a score of each head that takes part in the softmax and
    has no value. `value_dim`: for KV of one part, values are so many first elements of the keys.
    """

    scale: float
    window: int = 0
    sinks: torch.Tensor | None = None
    value_dim: int | None = None


class Backend(Protocol):
    """Attention over the pages of an arena. `name` is for reports."""

    name: str

    def prepare(self, arena: KvArena, rows: PassRows) -> Any:
        """What `run` needs to know of a pass; called once, before its KV is written."""
        ...

    def run(
        self, arena: KvArena, layer: int, q_TND: torch.Tensor, prepared: Any, heads: Heads
    ) -> torch.Tensor:
        """Attention [T, N, value dim] of all tokens of a pass over their rows' pages, in the dtype
        of q; KV of the pass is written already. The backend was made for `heads.window`.
        """
        ...
