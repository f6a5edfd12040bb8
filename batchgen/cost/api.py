"""The cost interface: integer times for passes, copies and switches; no formula of its own.

Everything that the simulator and the plan know about speed comes through `CostModel`. Times are
int64 picoseconds. For a fixed composition of a pass (decodes, chunks, samples) the time of a
one-rank engine is affine in `context` with an integer slope, and every other term is rounded once
per pass, so splitting a run of passes anywhere sums to the same integer (DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from batchgen.runtime.advisor import RankLoad
from batchgen.units import PS_PER_S

__all__ = [
    "PS_PER_S",
    "CostModel",
    "FloatArray",
    "IntArray",
    "Link",
    "PassDetail",
    "PassLoad",
    "RankLoad",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Link = Literal["host", "intra", "inter"]


@dataclass(slots=True)
class PassLoad:
    """Loads of consecutive passes of one engine; each array int64 [num_ranks, num_passes].

    decodes       rows that decode one token in the pass
    context       sum over the decoding rows of the KV tokens they read (computed tokens + 1)
    chunk_tokens  prompt tokens prefilled
    chunk_pairs   sum over chunks of (start + length)^2 - start^2 (twice the causal pairs)
    chunk_reads   sum over chunks of start (earlier KV tokens read again)
    samples       rows that need logits (decodes and last chunks)
    checkpoint    KV tokens streamed to the host during the pass
    """

    decodes: IntArray
    context: IntArray
    chunk_tokens: IntArray
    chunk_pairs: IntArray
    chunk_reads: IntArray
    samples: IntArray
    checkpoint: IntArray

    @classmethod
    def zeros(cls, num_ranks: int, num_passes: int) -> PassLoad:
        """An empty load, to be filled in place."""
        shape = (num_ranks, num_passes)
        return cls(*(np.zeros(shape, dtype=np.int64) for _ in fields(cls)))

    @property
    def num_ranks(self) -> int:
        return int(self.decodes.shape[0])

    @property
    def num_passes(self) -> int:
        return int(self.decodes.shape[1])

    def window(self, begin: int, end: int) -> PassLoad:
        """Views of the passes [begin, end)."""
        return PassLoad(*(getattr(self, field.name)[:, begin:end] for field in fields(self)))


@dataclass(slots=True)
class PassDetail:
    """What the sums of a `PassLoad` leave out, for cost models that are `detailed`.

    longest, shortest   most and fewest KV tokens that a decoding row reads, int64
                        [num_ranks, num_passes]; 0 where none decodes
    piece_ranks         rank of each prompt piece, int64 [num_pieces]
    piece_tokens        its tokens, int64 [num_pieces, num_passes]
    piece_starts        KV tokens before it, int64 [num_pieces, num_passes]
    """

    longest: IntArray
    shortest: IntArray
    piece_ranks: IntArray
    piece_tokens: IntArray
    piece_starts: IntArray

    @classmethod
    def even(cls, load: PassLoad) -> PassDetail:
        """As if all rows of a rank were alike and its prompt pieces were one."""
        mean = load.context // np.maximum(load.decodes, 1)
        ranks = np.arange(load.num_ranks, dtype=np.int64)
        return cls(mean, mean, ranks, load.chunk_tokens, load.chunk_reads)


class CostModel(Protocol):
    """What a pass, a copy and a switch cost on one engine of a layout.

    `detailed`: times are not affine in the context; `pass_ps` wants the detail of a load, and the
    methods that have none take rows and pieces as alike. `decode_affine` is not asked then.
    `streams`: passes use the host link by themselves, not only for checkpoints.
    `peers_over_host`: GPUs of a node have no link of their own, so that copies between its engines
    cross the host links of both.
    """

    num_ranks: int
    detailed: bool
    streams: bool
    peers_over_host: bool

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        """Duration of each pass in ps, shape [num_passes]; a pass without work costs 0."""
        ...

    def pass_one_ps(
        self,
        decodes: int,
        context: int,
        chunk_tokens: int = 0,
        chunk_pairs: int = 0,
        chunk_reads: int = 0,
        samples: int = 0,
        checkpoint: int = 0,
    ) -> int:
        """`pass_ps` of one pass by scalars, to the last picosecond, without NumPy once warm.

        With several ranks: as if every rank had this load.
        """
        ...

    def time_ps(self, loads: Sequence[RankLoad]) -> int:
        """`pass_ps` of one pass by scalars, to the last picosecond; one load per rank."""
        ...

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        """(c0_ps, slope_ps) of a pure decode pass of a one-rank engine.

        c0_ps + slope_ps * context equals `pass_ps` to the last picosecond for a load with
        `decodes` rows, `samples` = `decodes`, no chunk, and `checkpoint` = `decodes` KV tokens
        streamed down when `checkpoint` is true (every row closes one token per pass). Raises
        ValueError when `num_ranks` is not 1.
        """
        ...

    def streams_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        """How long each pass keeps the host link busy, from the host and to it, in ps, shape
        [num_passes]: on the rank where it takes longest, never longer than the pass."""
        ...

    def copy_ps(self, tokens: int, link: Link) -> int:
        """Time to move the KV of `tokens` tokens of one rank over a link, latency included.

        "host" is PCIe of the rank's GPUs, "intra" the link inside a node, "inter" between nodes.
        """
        ...

    def recompute_ps(self, tokens: int) -> int:
        """Estimate of the time to prefill `tokens` tokens of one row anew on one rank."""
        ...

    def switch_ps(self) -> int:
        """Time of a change of layout or role, without the KV copies (published: 5 to 10 s)."""
        ...

    def flops(self, load: PassLoad) -> FloatArray:
        """Useful floating point operations of the whole engine per pass, for MFU."""
        ...

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        """Bytes read from and written to the HBM of all GPUs of the engine per pass, for MBU."""
        ...

    def describe(self) -> dict[str, Any]:
        """The constants behind the times, JSON-able, for `run.json`."""
        ...
