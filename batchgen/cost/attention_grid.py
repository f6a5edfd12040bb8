"""Measured attention of a layer over (chunk, history, decodes, mean KV), and the skew of contexts.

Linear interpolation between the measured points, in the sizes themselves: a kernel's time is
piecewise linear in them (tiles and waves), not a power. It knows no engine and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.cost.api import FloatArray, IntArray
from batchgen.cost.lattice import Lattice

Point = tuple[int, int, int, int]
"""(prompt tokens, their earlier KV tokens, decoding rows, mean KV tokens of a decoding row)."""


class AttentionGrid:
    """Times over a full grid, in the unit of the points; beyond its last points the last slope
    goes on.

    chunk, history, rows, context: the axes; the first chunk is 0 (decodes alone), the first number
    of rows 0 (a prompt alone).
    """

    def __init__(self, points: Mapping[Point, float]) -> None:
        """Raises ValueError that names the first hole in the grid."""
        self.chunk = _axis([0, *(point[0] for point in points)])
        self.history = _axis(point[1] for point in points if point[0])
        self.rows = _axis([0, *(point[2] for point in points)])
        self.context = _axis(point[3] for point in points if point[2])
        for name in ("chunk", "history", "rows", "context"):
            if getattr(self, name).size < 2:
                raise ValueError(f"fewer than two sizes of {name}")
        values = self._fill(points)
        self._lattice = Lattice((self.chunk, self.history, self.rows, self.context), values)
        self.launch = float(values[1, 0, 0, 0])
        """The smallest prompt: what a look-up has that is paid once per launch."""

    def _fill(self, points: Mapping[Point, float]) -> FloatArray:
        chunks, histories, rows, contexts = (
            axis.astype(int).tolist()
            for axis in (self.chunk, self.history, self.rows, self.context)
        )

        def at(chunk: int, history: int, rows: int, context: int) -> float:
            point = chunk, history, rows, context
            found = points.get(point)
            if found is None:
                raise ValueError("no point for chunk {}, history {}, rows {}, KV {}".format(*point))
            return float(found)

        shape = len(chunks), len(histories), len(rows), len(contexts)
        values = np.zeros(shape)
        alone = np.array([[at(0, 0, n, kv) for kv in contexts] for n in rows[1:]])
        values[0, :, 1:] = alone
        for c, chunk in enumerate(chunks[1:], 1):
            for h, history in enumerate(histories):
                one = at(chunk, history, 0, 0)
                values[c, h, 0] = one
                for n, count in enumerate(rows[1:], 1):
                    if count == rows[-1] and (chunk, history, count, contexts[0]) not in points:
                        # Not measured beside a prompt: as much slower than alone as the row below.
                        slower = (values[c, h, n - 1] - one) / np.maximum(alone[n - 2], 1e-9)
                        values[c, h, n] = one + slower * alone[n - 1]
                    else:
                        values[c, h, n] = [at(chunk, history, count, kv) for kv in contexts]
        values[0, :, 0] = values[1, :, 0]  # a prompt shorter than the shortest takes as long
        return values

    def time(
        self, chunk: FloatArray, history: FloatArray, rows: FloatArray, context: FloatArray
    ) -> FloatArray:
        """Elementwise over arrays of one shape; no tokens take no time."""
        time = self._lattice.at(chunk, history, rows, context)
        return np.where(chunk + rows > 0, time, 0.0)


class TwoGrids:
    """The powers of two, and beside them a narrower grid of closer sizes where it was measured.

    Together they are no full product but for decodes alone, so a look-up with a prompt piece is in
    one of them: in the closer one when it holds the piece and the mean context.
    """

    def __init__(self, points: Mapping[Point, float]) -> None:
        """Raises ValueError that names the first hole in a grid."""
        self.wide = AttentionGrid(
            {point: time for point, time in points.items() if all(map(_is_power, point))}
        )
        self.launch = self.wide.launch
        self.close = _close_grid(points)
        self._alone = self._decodes_alone(points)

    def _decodes_alone(self, points: Mapping[Point, float]) -> Lattice:
        """Over rows and contexts of both grids."""
        alone = {point[2:]: time for point, time in points.items() if not point[0]}
        rows = self.wide.rows
        counts, contexts = rows[1:].astype(int).tolist(), _axis(context for _, context in alone)
        values = np.zeros((rows.size, contexts.size))
        for index, count in enumerate(counts, 1):
            there = sorted(context for number, context in alone if number == count)
            times = [alone[count, context] for context in there]
            values[index] = np.interp(contexts, there, times)
        return Lattice((rows, contexts), values)

    def time(
        self, chunk: FloatArray, history: FloatArray, rows: FloatArray, context: FloatArray
    ) -> FloatArray:
        """Elementwise over arrays of one shape; no tokens take no time."""
        time = self._with_prompts(chunk, history, rows, context)
        alone = (chunk == 0) & (rows > 0)
        if alone.any():
            time = np.where(alone, self._alone.at(rows, context), time)
        return time

    def _with_prompts(
        self, chunk: FloatArray, history: FloatArray, rows: FloatArray, context: FloatArray
    ) -> FloatArray:
        close = self.close
        if close is None:
            return self.wide.time(chunk, history, rows, context)
        inside = (chunk >= close.chunk[1]) & ((rows == 0) | (context >= close.context[0]))
        if inside.all():
            return close.time(chunk, history, rows, context)
        wide = self.wide.time(chunk, history, rows, context)
        return np.where(inside, close.time(chunk, history, rows, context), wide)


def _close_grid(points: Mapping[Point, float]) -> AttentionGrid | None:
    """The grid that the prompt pieces of other sizes than powers of two span."""
    odd = [point for point in points if not _is_power(point[0])]
    if not odd:
        return None
    sizes = [{point[axis] for point in odd} for axis in range(4)]
    mixed = {point[1:] for point in odd}
    chunks: dict[int, set[tuple[int, ...]]] = {}
    for point in points:
        chunks.setdefault(point[0], set()).add(point[1:])
    sizes[0] = {chunk for chunk, found in chunks.items() if found >= mixed}
    return AttentionGrid(
        {
            point: time
            for point, time in points.items()
            if (point[1:] in mixed and point[0] in sizes[0])
            or (point[0] == 0 and point[3] in sizes[3])
        }
    )


def _is_power(size: int) -> bool:
    return size & (size - 1) == 0


def _axis(values: object) -> FloatArray:
    return np.array(sorted(set(values)), dtype=np.float64)  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewTable:
    """How far uneven contexts lift the time from that of the mean towards that of the longest.

    The axes are upper ends of buckets (chunk: the measured sizes); `alpha` has a value for every
    bucket. Raises nothing: sizes beyond the last bucket are in it.
    """

    chunk: FloatArray
    rows: FloatArray
    rate: FloatArray
    longest: FloatArray
    history: FloatArray
    alpha: FloatArray

    def at(
        self,
        chunk: FloatArray,
        rows: FloatArray,
        rate: FloatArray,
        longest: FloatArray,
        history: FloatArray,
    ) -> FloatArray:
        """Elementwise; `rate` is (mean - shortest) / (longest - shortest)."""
        middles = (self.chunk[1:] + self.chunk[:-1]) / 2
        where = (
            np.searchsorted(middles, chunk),
            _bucket(self.rows, rows),
            _bucket(self.rate, rate),
            _bucket(self.longest, longest),
            _bucket(self.history, history),
        )
        return np.asarray(self.alpha[where])


def _bucket(ends: FloatArray, values: FloatArray) -> NDArray[np.int64]:
    return np.minimum(np.searchsorted(ends, values, side="left"), ends.size - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The grid with its skew (None: not measured, then contexts count as even)."""

    grid: TwoGrids
    skew: SkewTable | None = None

    def pass_time(
        self,
        rows: IntArray,
        context: IntArray,
        longest: IntArray,
        shortest: IntArray,
        piece_tokens: IntArray,
        piece_starts: IntArray,
    ) -> FloatArray:
        """One layer, one rank, consecutive passes: arrays [num_passes].

        rows, context (their KV tokens together), longest, shortest: the decodes. piece_tokens,
        piece_starts [num_pieces, num_passes]: prompt pieces. Decodes run beside the largest piece;
        every further piece takes what it takes alone, without a launch.
        """
        grid, passes = self.grid, len(rows)
        zero = np.zeros(passes)
        chunk, history = zero, zero
        sizes, starts = piece_tokens.astype(np.float64), piece_starts.astype(np.float64)
        if len(sizes):
            main = sizes.argmax(axis=0)[None]
            chunk = np.take_along_axis(sizes, main, 0)[0]
            history = np.take_along_axis(starts, main, 0)[0]
            np.put_along_axis(sizes, main, 0.0, 0)
        count = rows.astype(np.float64)
        mean = context / np.maximum(count, 1.0)
        uneven = self.skew is not None and bool((longest > shortest).any())
        stack = [(chunk, history, count, mean)]
        if uneven:
            stack.append((chunk, history, count, longest.astype(np.float64)))
        if len(sizes) > 1:
            stack += [(size, start, zero, zero) for size, start in zip(sizes, starts, strict=True)]
        found = grid.time(*(np.stack(column) for column in zip(*stack, strict=True)))
        time = found[0]
        if uneven:
            assert self.skew is not None
            rate = (mean - shortest) / np.maximum(longest - shortest, 1)
            alpha = self.skew.at(chunk, count, rate, stack[1][3], history)
            time = time + np.where(longest > shortest, alpha, 0.0) * (found[1] - time)
        for one in found[1 + uneven :]:
            time = time + np.maximum(one - grid.launch, 0.0)
        return np.asarray(time)
