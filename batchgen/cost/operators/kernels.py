"""Seconds of kernels on one GPU, from the fits that are there for it. Composes no pass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.operators import store
from batchgen.cost.operators.fitted import Fitted
from batchgen.cost.operators.offsets import Offsets, factor
from batchgen.cost.operators.offsets import shipped as shipped_offsets
from batchgen.cost.operators.points import Columns
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec

# What engines run for a dtype of the catalog, best first: the first that was measured is taken; of
# other GPUs only the last, which needs no special units.
_VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "gemm": {"fp8": ("fp8",), "fp16": ("bf16",)},
    "experts": {"fp8": ("fp8_block",), "fp16": ("bf16",), "mxfp4": ("mxfp4_mxfp8", "mxfp4")},
    "mla_decode": {"fp8": ("fp8_block",)},
    "mla_prefill": {"fp8": ("fp8_block",)},
    "decode_attention": {"fp16": ("bf16",)},
    "prefill_attention": {"fp16": ("bf16",)},
}
# GPUs without tables whose kernels are those of another: its fits, over their own peaks.
_RELATIONS = {"b300": "b200"}
Number = float | FloatArray


class Kernels:
    """Kernels of `gpu`. `extrapolated` collects what was asked for and is measured on other GPUs
    only: such times are guesses by the peaks of this one, or by those and a factor (`offsets`)."""

    def __init__(
        self,
        gpu: GpuSpec,
        fitted: Mapping[store.Key, Fitted] | None = None,
        offsets: Offsets | None = None,
    ) -> None:
        self.gpu = gpu
        self._offsets = shipped_offsets() if offsets is None else offsets
        self.extrapolated: set[str] = set()
        self._fitted = store.shipped() if fitted is None else fitted

    def gemm(self, m: Number, n: Number, k: Number, dtype: str) -> FloatArray:
        """[m, k] x [k, n] with weights of a dtype of the catalog."""
        return self.seconds("gemm", dtype, m=m, n=n, k=k)

    def collective(self, what: str, gpus: int, size_bytes: Number) -> FloatArray:
        """all_reduce, all_gather, reduce_scatter or alltoall of a whole tensor of so many bytes."""
        if gpus == 1:
            return np.zeros_like(np.asarray(size_bytes, dtype=np.float64))
        return self.seconds("collectives", what, gpus=gpus, bytes=size_bytes)

    def seconds(self, operator: str, dtype: str, **sizes: Number) -> FloatArray:
        """Any kernel, by the columns of its operator; `dtype` is one of the catalog, of weights or
        of KV. UserError for one that was not measured anywhere."""
        fitted = self._find(operator, dtype)
        arrays = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in sizes.values()))
        shape = arrays[0].shape
        # Of nothing there is no logarithm; callers make it 0.
        columns: Columns = {
            name: np.maximum(array.ravel(), 0.0 if name in ("window", "skew") else 1.0)
            for name, array in zip(sizes, arrays, strict=True)
        }
        seconds = fitted.seconds(self.gpu, columns)
        return np.asarray(
            seconds * factor(self._offsets, operator, self.gpu.name, columns)
        ).reshape(shape)

    def _find(self, operator: str, dtype: str) -> Fitted:
        variants = _VARIANTS.get(operator, {}).get(dtype, (dtype,))
        places: list[tuple[str, tuple[str, ...]]] = [(self.gpu.name, variants)]
        if self.gpu.name in _RELATIONS:
            places.append((_RELATIONS[self.gpu.name], variants))
        for gpu, of_gpu in (*places, (store.ANY_GPU, variants[-1:])):
            for variant in of_gpu:
                found = self._fitted.get((operator, gpu, variant))
                if found is not None:
                    if gpu != self.gpu.name:
                        self.extrapolated.add(f"{operator} {variant}")
                    return found
        raise UserError(
            f"no measured {operator} with {dtype}", remedy="use the roofline: leave out --costs"
        )
