"""Linear interpolation on a full grid of any number of axes, elementwise. It knows no kernels."""

from __future__ import annotations

import numpy as np

from batchgen.cost.api import FloatArray


class Lattice:
    """`values` over the product of `axes` (each ascending, two entries at least).

    Below the first entry of an axis the value of the first holds, beyond the last the last slope
    goes on.
    """

    def __init__(self, axes: tuple[FloatArray, ...], values: FloatArray) -> None:
        self.axes = axes
        self._values = values.ravel()
        strides = np.cumprod([1, *(axis.size for axis in axes[:0:-1])])[::-1]
        self._strides: list[int] = strides.tolist()
        corners = np.zeros(1, dtype=np.int64)
        for stride in self._strides:
            corners = np.concatenate([corners, corners + stride])
        self._corners = corners

    def at(self, *sizes: FloatArray) -> FloatArray:
        """Values at `sizes`, one array per axis, all of one shape."""
        base = np.zeros(sizes[0].shape, dtype=np.int64)
        weights: list[FloatArray] = []
        for axis, stride, size in zip(self.axes, self._strides, sizes, strict=True):
            low = np.clip(np.searchsorted(axis, size, side="right") - 1, 0, axis.size - 2)
            weights.append(np.maximum((size - axis[low]) / (axis[low + 1] - axis[low]), 0.0))
            base += low * stride
        found = self._values[base + self._corners.reshape(-1, *(1,) * base.ndim)]
        # The highest bit of a corner is its last axis: halving folds the last axis first.
        for weight in reversed(weights):
            half = len(found) // 2
            found = found[:half] + (found[half:] - found[:half]) * weight
        return np.asarray(found[0])
