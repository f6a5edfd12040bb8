"""What a pass computes: rows as the worker gives them, and as the layers of a model use them.

Order of tokens: first one token per decoding row, then the prompt chunks one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from batchgen.exec.attention import Backend
    from batchgen.exec.attention.chunks import ChunkGroup
    from batchgen.schedule import Period

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRows:
    """One pass as columns of int64: S segments of rows, T tokens, R tokens whose logits are wanted.

    Segment s computes tokens [starts[s], starts[s] + lengths[s]) of the row in slot slots[s]; their
    KV before that is in the arena, and their pages are reserved. The first `num_decodes` segments
    have length 1. `token_ids` [T] are flat, in the order of the segments; `wanted` [R] are flat
    token numbers.
    """

    slots: IntArray
    starts: IntArray
    lengths: IntArray
    num_decodes: int
    token_ids: IntArray
    wanted: IntArray

    @property
    def firsts(self) -> IntArray:
        """The flat number of each segment's first token [S]."""
        firsts: IntArray = np.cumsum(self.lengths) - self.lengths
        return firsts

    @property
    def ends(self) -> IntArray:
        """Tokens of each row after the pass [S]."""
        return self.starts + self.lengths

    def part(self, begin: int, end: int) -> PassRows:
        """The segments [begin, end) as a pass of their own, of which nothing is wanted."""
        first = int(self.firsts[begin])
        last = first + int(self.lengths[begin:end].sum())
        return PassRows(
            slots=self.slots[begin:end],
            starts=self.starts[begin:end],
            lengths=self.lengths[begin:end],
            num_decodes=min(max(self.num_decodes - begin, 0), end - begin),
            token_ids=self.token_ids[first:last],
            wanted=self.wanted[:0],
        )

    def of_wanted(self) -> PassRows:
        """The wanted tokens, each a segment of its own."""
        segments = np.searchsorted(self.firsts, self.wanted, side="right") - 1
        return PassRows(
            slots=self.slots[segments],
            starts=self.starts[segments] + self.wanted - self.firsts[segments],
            lengths=np.ones_like(self.wanted),
            num_decodes=len(self.wanted),
            token_ids=self.token_ids[self.wanted],
            wanted=np.arange(len(self.wanted)),
        )

    def flat(self) -> tuple[IntArray, IntArray]:
        """Slot and position of each token, two of [T]."""
        total = int(self.lengths.sum())
        within = np.arange(total, dtype=np.int64) - np.repeat(self.firsts, self.lengths)
        return np.repeat(self.slots, self.lengths), np.repeat(self.starts, self.lengths) + within


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The tokens of a pass whose logits are wanted: all that the last layer must attend from.

    `tokens` [R] are flat token numbers, `attention` is what the backend prepared for them (None if
    there are none).
    """

    tokens: torch.Tensor
    attention: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a pass needs to be computed, on the device: nothing of it is looked up on the host.

    `batches`: one for all layers, or one per module of `period` that attends (None for others).
    `wanted` None: the logits of all tokens are wanted.
    """

    batches: tuple[Batch | None, ...]
    wanted: Wanted | None
    period: Period | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One pass, prepared: what its layers share, as tensors on the device.

    `pages` and `offsets` [T] say where each token's KV is written, `cos` and `sin` [T, 1, D / 2]
    how its queries and keys are turned: rows of `angles`, the whole tables. `attention` is what
    `backend` prepared. Models with latent attention: `absorbed` are the tokens that it covers
    (None: all), `expanded` the chunks that it leaves out.
    """

    pages: torch.Tensor
    offsets: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    angles: tuple[torch.Tensor, torch.Tensor]
    backend: Backend
    attention: Any
    absorbed: torch.Tensor | None = None
    expanded: tuple[ChunkGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """What one pass did. `finished` holds (row, "stop" | "length"), `failed` (row, code, why)."""

    finished: tuple[tuple[int, str], ...]
    failed: tuple[tuple[int, str, str], ...]
    duration_s: float
