"""Logits in blocks of the vocabulary: their best tokens and their mass, without sorting any of it.

One read of the logits gives the maximum of every block of `BLOCK_TOKENS` tokens; the best token,
and the best few, are found by these. What is added up is added up within a row in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from batchgen.exec import compiled

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BLOCK_TOKENS = 128  # divides the vocabulary of every large model that we know
# Rows whose exponentials are made at once: some megabytes, which a cache holds.
TILE_ROWS = 4


@dataclass(frozen=True, slots=True)
class Blocks:
    """Logits [R, blocks, BLOCK_TOKENS], padded with -inf, and the maximum of each block (NaN if it
    holds one). `best` [R] is what `greedy` says, where it was found on the way."""

    logits: torch.Tensor
    tops: torch.Tensor
    vocab_size: int
    best: torch.Tensor | None = None

    @staticmethod
    def of(logits_RV: torch.Tensor) -> Blocks:
        """A view where BLOCK_TOKENS divides the vocabulary."""
        rows, size = logits_RV.shape
        if size % BLOCK_TOKENS:
            pad = BLOCK_TOKENS - size % BLOCK_TOKENS
            logits_RV = functional.pad(logits_RV, (0, pad), value=float("-inf"))
        logits = logits_RV.reshape(rows, -1, BLOCK_TOKENS)
        if (
            logits.device.type == "cpu"
            and logits.dtype == torch.float32
            and compiled.is_compiled(logits.dtype)
        ):
            tops_RB, best_R = compiled.block_tops(logits, size)
            return Blocks(logits, tops_RB, size, best_R)
        return Blocks(logits, logits.amax(-1), size)

    def greedy(self) -> torch.Tensor:
        """Highest logit of each row, ties to the lowest index; the vocabulary size marks a bad row.

        A row is bad when its maximum is not finite: then no choice means anything.
        """
        if self.best is not None:
            return self.best
        top_R = self.tops.amax(-1)
        block_R = _first(self.tops == top_R[:, None])
        inside = self.logits[torch.arange(len(top_R), device=top_R.device), block_R]
        chosen_R = block_R * BLOCK_TOKENS + _first(inside == top_R[:, None])
        return torch.where(top_R.isfinite(), chosen_R, self.vocab_size)

    def take(self, rows: torch.Tensor) -> Blocks:
        """Some of the rows, on the CPU."""
        rows = rows.to(self.tops.device)
        return Blocks(self.logits[rows].cpu(), self.tops[rows].cpu(), self.vocab_size)


def _first(true: torch.Tensor) -> torch.Tensor:
    """Index of the first true of each row (0 without one): argmax leaves open which of equals it
    names."""
    index = torch.arange(true.shape[-1], device=true.device)
    return torch.where(true, index, true.shape[-1]).amin(-1).clamp(max=true.shape[-1] - 1)


def greedy(logits_RV: torch.Tensor) -> torch.Tensor:
    """See `Blocks.greedy`."""
    return Blocks.of(logits_RV).greedy()


def block_masses(blocks: Blocks, rows: Ints, temperature: Floats) -> npt.NDArray[np.float32]:
    """Sums of exp((logit - best) / temperature) over each block of `rows` [S], [S, blocks].

    In torch a few rows at a time, in a buffer that stays in the cache.
    """
    _, num_blocks, _ = blocks.logits.shape
    sums = torch.empty((len(rows), num_blocks))
    if not len(rows):
        return sums.numpy()
    index = torch.from_numpy(rows)
    best = blocks.tops[index].amax(-1)
    scale = torch.from_numpy((1.0 / temperature).astype(np.float32))
    if blocks.best is not None and blocks.logits.is_contiguous():
        compiled_sums: npt.NDArray[np.float32] = compiled.block_masses(
            blocks.logits, index.contiguous(), best, scale
        ).numpy()
        return compiled_sums
    buffer = torch.empty((TILE_ROWS, num_blocks, BLOCK_TOKENS))
    for start in range(0, len(rows), TILE_ROWS):
        end = min(start + TILE_ROWS, len(rows))
        tile = buffer[: end - start]
        if rows[end - 1] - rows[start] == end - start - 1:  # neighbours need no copy; rows ascend
            ours = blocks.logits[int(rows[start]) : int(rows[start]) + end - start]
        else:
            ours = torch.index_select(blocks.logits, 0, index[start:end], out=tile)
        # Differences to the best are at most 0: a low temperature makes -inf of them, never inf.
        torch.sub(ours, best[start:end, None, None], out=tile)
        tile.mul_(scale[start:end, None, None]).exp_()
        torch.sum(tile, -1, out=sums[start:end])
    return sums.numpy()


def best_tokens(
    logits: npt.NDArray[np.float32], tops: npt.NDArray[np.float32], rows: Ints, num_blocks: int
) -> tuple[Ints, Floats]:
    """Ids and logits [P, widest] of the best tokens of each row, the best first, of equals the
    lowest id; behind the last of a row come ids 0 with -inf."""
    ours = tops[rows]
    if num_blocks < ours.shape[1]:
        least = -np.partition(-ours, num_blocks - 1, axis=1)[:, num_blocks - 1]
    else:
        least = np.full(len(rows), -np.inf, dtype=np.float32)
    row, block = np.nonzero(ours >= least[:, None])
    inside = logits[rows[row], block]
    which, offset = np.nonzero((inside >= least[row][:, None]) & np.isfinite(inside))
    row_of, ids = row[which], block[which] * BLOCK_TOKENS + offset
    counts = np.bincount(row_of, minlength=len(rows))
    place = np.arange(len(row_of)) - (np.cumsum(counts) - counts)[row_of]
    shape = len(rows), int(counts.max())
    values, found = np.full(shape, -np.inf), np.zeros(shape, dtype=np.int64)
    values[row_of, place], found[row_of, place] = inside[which, offset], ids
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(found, order, 1), np.take_along_axis(values, order, 1)
