"""Integer tables of a cost over a count (tokens, rows), filled on demand. It knows no formula.

Scalar and vector look-ups read the same table, so both paths of a cost model agree to the last
picosecond, whatever the vector code of NumPy does with the tail of an array.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from batchgen.cost.api import FloatArray, IntArray

_FIRST = 1024
_LIMIT = 1 << 20  # 8 MB; larger counts are evaluated directly


class IntTable:
    """round(f(i)) in int64 for i = 0, 1, ...; f maps a float64 array of counts to picoseconds.

    f must be elementwise. Entry 0 is 0 whatever f says: no tokens cost nothing.
    """

    __slots__ = ("_function", "_memo", "_values")

    def __init__(self, function: Callable[[FloatArray], FloatArray]) -> None:
        self._function = function
        self._values = np.zeros(0, dtype=np.int64)
        self._memo: dict[int, int] = {}

    def take(self, counts: IntArray) -> IntArray:
        """Values at `counts`, same shape."""
        top = int(counts.max()) if counts.size else 0
        if top >= _LIMIT:
            return np.where(counts > 0, self._evaluate(counts), 0)
        if top >= self._values.size:
            self._grow(top)
        return self._values[counts]

    def at(self, count: int) -> int:
        """Value at one count; about 60 ns once known."""
        value = self._memo.get(count)
        if value is None:
            if 0 <= count < self._values.size:
                value = int(self._values[count])
            else:
                value = int(self.take(np.array([count], dtype=np.int64))[0])
            self._memo[count] = value
        return value

    def _evaluate(self, counts: IntArray) -> IntArray:
        return np.rint(self._function(counts.astype(np.float64))).astype(np.int64)

    def _grow(self, top: int) -> None:
        # Always the same blocks, so that an entry does not depend on the order of look-ups.
        size = self._values.size
        parts = [self._values]
        while size <= top:
            end = max(_FIRST, 2 * size)
            block = self._evaluate(np.arange(size, end, dtype=np.int64))
            if size == 0:
                block[0] = 0
            parts.append(block)
            size = end
        self._values = np.concatenate(parts)
