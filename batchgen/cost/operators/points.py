"""Measured points of one kind of kernel on one GPU. Fits nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.cost.api import FloatArray

Columns = dict[str, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """`columns` [P] by name, `seconds` [P]. `variant` is the dtype of weights, or of KV."""

    operator: str
    gpu: str
    variant: str
    columns: Columns
    seconds: FloatArray

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Points:
        return Points(
            operator=self.operator,
            gpu=self.gpu,
            variant=self.variant,
            columns={name: values[which] for name, values in self.columns.items()},
            seconds=self.seconds[which],
        )

    def groups(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The number of each point's group [P]: points alike in these columns share one."""
        rows = np.stack([self.columns[name] for name in names], axis=1)
        _, number = np.unique(rows, axis=0, return_inverse=True)
        return np.asarray(number.ravel(), dtype=np.int64)
