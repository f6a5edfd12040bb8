"""How products and activations are computed: fast, or bitwise the same in every batch.

Every weight of a model is used through one of these, chosen when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional

from batchgen.exec.compiled import is_compiled
from batchgen.exec.exact import ROW_MULTIPLE, exact_linear, exact_sigmoid, exact_silu, round_up
from batchgen.exec.packed import PackedMatrix, pack, packed_linear, packed_way


class Arithmetic:
    """The fast one: torch's own operations, and products of packed weights.

    `compiled`: experts may run in the CPU library.
    """

    exact = False

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.compiled = device == "cpu" and is_compiled(dtype)
        self._way = packed_way() if self.compiled and dtype == torch.bfloat16 else 0

    def pack(self, weight: torch.Tensor, *, gated: bool = False) -> torch.Tensor:
        """`weight` [outputs, inputs], or one per expert, as products here are fastest: maybe a
        `PackedMatrix`. `gated`: gates above ups, for `silu(gate) * up`."""
        if self._way and weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
            return pack(weight, self._way, gated=gated)
        return weight

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x @ weight.T (+ bias)."""
        if isinstance(weight, PackedMatrix):
            return packed_linear(x, weight, bias)
        return functional.linear(x, weight, bias)

    def per_head(self, x_TND: torch.Tensor, weight_NDE: torch.Tensor) -> torch.Tensor:
        """Every head's own product: [T, N, E]."""
        return torch.bmm(x_TND.transpose(0, 1), weight_NDE).transpose(0, 1)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(x)

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x)

    def grouped(
        self,
        x_SH: torch.Tensor,
        weight_EOH: torch.Tensor,
        bias_EO: torch.Tensor | None,
        owners_S: torch.Tensor,
        counts_E: torch.Tensor,
    ) -> torch.Tensor:
        """Rows sorted by their expert `owners_S`, `counts_E` each, times their expert's weight."""
        if x_SH.dtype == torch.bfloat16 and _has_aligned_rows(x_SH, weight_EOH):
            ends = counts_E.cumsum(0).to(torch.int32)
            out_SO = functional.grouped_mm(x_SH, weight_EOH.transpose(1, 2), offs=ends)
        else:
            out_SO = each(x_SH, weight_EOH, counts_E.tolist())
        return out_SO if bias_EO is None else out_SO + bias_EO.index_select(0, owners_S)


class ExactArithmetic(Arithmetic):
    """The exact one: padded products and fixed activations (see `exec.exact`)."""

    exact = True

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return exact_linear(x, weight, bias)

    def per_head(self, x_TND: torch.Tensor, weight_NDE: torch.Tensor) -> torch.Tensor:
        rows = len(x_TND)
        padded = functional.pad(x_TND, (0, 0, 0, 0, 0, round_up(rows) - rows))
        heads = padded.transpose(0, 1).contiguous()
        # Head by head: a batched product may choose its kernel by the whole batch.
        out = [x @ weight for x, weight in zip(heads, weight_NDE, strict=True)]
        return torch.stack(out, 1)[:rows]

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return exact_silu(x)

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        return exact_sigmoid(x)

    def grouped(
        self,
        x_SH: torch.Tensor,
        weight_EOH: torch.Tensor,
        bias_EO: torch.Tensor | None,
        owners_S: torch.Tensor,
        counts_E: torch.Tensor,
    ) -> torch.Tensor:
        # Every expert's group starts and ends at a multiple of ROW_MULTIPLE rows.
        padded = (counts_E + (ROW_MULTIPLE - 1)) // ROW_MULTIPLE * ROW_MULTIPLE
        shift = (padded.cumsum(0) - padded) - (counts_E.cumsum(0) - counts_E)
        places = torch.arange(len(owners_S), device=owners_S.device) + shift[owners_S]
        sizes = padded.tolist()
        wide = x_SH.new_zeros(sum(sizes), x_SH.shape[1]).index_copy_(0, places, x_SH)
        out_SO = each(wide, weight_EOH, sizes).index_select(0, places)
        return out_SO if bias_EO is None else out_SO + bias_EO.index_select(0, owners_S)


def _has_aligned_rows(x_SH: torch.Tensor, weight_EOH: torch.Tensor) -> bool:
    """Whether torch's grouped product takes these: on a GPU rows must begin at 16 bytes each."""
    if x_SH.device.type == "cpu":
        return True
    rows_bytes = (x.stride(-2) * x.itemsize for x in (x_SH, weight_EOH))
    return all(x.data_ptr() % 16 == 0 for x in (x_SH, weight_EOH)) and not any(
        size % 16 for size in rows_bytes
    )


def each(x_SH: torch.Tensor, weight_EOH: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """One product per expert that has rows."""
    parts = zip(x_SH.split(list(sizes)), weight_EOH, strict=True)
    return torch.cat([functional.linear(x, weight) for x, weight in parts if len(x)])


def add_in_order(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of `parts`, the first first: one fixed order, which reductions do not promise."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
