"""RMS norm of rows, alone or of a sum that is kept too. Knows no layers.

*Idea.* A row of hidden states fits in the registers of one block of threads, so that a single read
serves both the mean of the squares and the scaling. A model has two such norms per layer, each
behind an addition to the residual stream; done together they need one launch, and the sum is not
read back. Short rows (the norms of latents) share a block, else its threads would have nothing to
load. How many do depends on the length of a row alone, so that a row's bits never depend on its
batch.

*Rounding* is that of `exec.layers`: the sum is rounded to the dtype before it is normed, the normed
value before it is multiplied by the weight. Statistics are float32.

*Bytes.* `rms_norm` reads and writes T H elements each; `add_rms_norm` reads 2 T H and writes 2 T H.
*FLOPs* are about 4 T H, nothing. *Floor* on an H200 (4.3 TB/s copied): T = 8192, H = 4096 in
bfloat16 is 134 MB, 31 us, or twice that with the addition. A decoding batch of 256 rows is 4 MB,
1 us: there the launch is the cost.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work, config

MAX_HIDDEN = 16384
ELEMENTS = 2048  # of rows that share a block, at least


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def add_rms_norm_reference(
    x_TH: torch.Tensor, added_TH: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of both, and its RMS norm."""
    total = x_TH + added_TH
    return total, rms_norm_reference(total, weight, eps)


@triton.jit(do_not_specialize=["num_rows"])
def norm_kernel(
    x: tl.tensor,
    added: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    inner: tl.tensor,
    x_outer: tl.tensor,
    x_inner: tl.tensor,
    added_stride: tl.tensor,
    total_stride: tl.tensor,
    out_outer: tl.tensor,
    out_inner: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ADDS: tl.constexpr,
    FLAT: tl.constexpr,  # rows have one stride: `inner` is 1
) -> None:
    """ROWS rows per program. Row r lies at (r // inner, r % inner)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows)[:, None] & (columns < HIDDEN)
    far = rows.to(tl.int64)
    if FLAT:
        from_x, to_out = far * x_outer, far * out_outer
    else:
        outer, within = far // inner, far % inner
        from_x = outer * x_outer + within * x_inner
        to_out = outer * out_outer + within * out_inner
    values = tl.load(x + from_x[:, None] + columns, mask=mask, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    if ADDS:
        more = tl.load(added + (far * added_stride)[:, None] + columns, mask=mask, other=0.0)
        rounded = (values + more.to(tl.float32)).to(dtype)
        tl.store(total + (far * total_stride)[:, None] + columns, rounded, mask=mask)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / HIDDEN + eps)
    normed = (values * scale[:, None]).to(dtype).to(tl.float32)
    factor = tl.load(weight + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
    tl.store(out + to_out[:, None] + columns, (normed * factor).to(dtype), mask=mask)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """RMS norm over the last dimension of `x` [..., H]; up to three dimensions may be strided, but
    for the last."""
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dim() > 3:
        rms_norm(x.reshape(-1, x.shape[-1]), weight, eps, out=out.view(-1, x.shape[-1]))
        return out
    _launch(x, None, weight, None, out, eps)
    return out


def add_rms_norm(
    x_TH: torch.Tensor,
    added_TH: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of both, rounded, and its RMS norm. The sum may be written over either."""
    if out is None:
        first = torch.empty(x_TH.shape, dtype=x_TH.dtype, device=x_TH.device)
        out = first, torch.empty_like(first)
    _launch(x_TH, added_TH, weight, out[0], out[1], eps)
    return out


def _launch(
    x: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    out: torch.Tensor,
    eps: float,
) -> None:
    hidden = x.shape[-1]
    if hidden > MAX_HIDDEN:
        raise ValueError(f"rows of {hidden} elements; a norm has at most {MAX_HIDDEN}")
    assert x.stride(-1) == out.stride(-1) == 1 or hidden == 1
    num_rows = x.numel() // hidden
    if not num_rows:
        return
    inner = 1 if _is_flat(x) and _is_flat(out) else x.shape[1]
    x_outer, x_inner = _strides(x, inner)
    out_outer, out_inner = _strides(out, inner)
    sizes = _sizes(hidden)
    norm_kernel[(triton.cdiv(num_rows, sizes["ROWS"]),)](
        x,
        x if added is None else added,
        weight,
        out if total is None else total,
        out,
        num_rows,
        inner,
        x_outer,
        x_inner,
        0 if added is None else added.stride(0),
        0 if total is None else total.stride(0),
        out_outer,
        out_inner,
        eps,
        HIDDEN=hidden,
        ADDS=added is not None,
        FLAT=inner == 1,
        **sizes,
    )


def _sizes(hidden: int) -> dict[str, int]:
    """Sixteen elements per thread; more in the longest rows, which need more than 16 warps."""
    block = triton.next_power_of_2(hidden)
    rows = max(1, ELEMENTS // block)
    warps = min(16, max(4, rows * block // 512))
    return config("norms", str(block), {"BLOCK": block, "ROWS": rows, "num_warps": warps})


def _is_flat(x: torch.Tensor) -> bool:
    """Whether one stride leads from row to row."""
    return x.dim() < 3 or x.shape[1] == 1 or x.stride(0) == x.shape[1] * x.stride(1)


def _strides(x: torch.Tensor, inner: int) -> tuple[int, int]:
    """From row to row, or those of the first two of three dimensions."""
    if inner > 1:
        return x.stride(0), x.stride(1)
    if x.dim() == 1:
        return 0, 0
    return (x.stride(0) if x.dim() == 2 or x.shape[1] == 1 else x.stride(1)), 0


def rms_norm_work(num_rows: int, hidden: int, itemsize: int) -> Work:
    return Work(flops=4.0 * num_rows * hidden, bytes=2.0 * num_rows * hidden * itemsize)


def add_rms_norm_work(num_rows: int, hidden: int, itemsize: int) -> Work:
    return Work(flops=5.0 * num_rows * hidden, bytes=4.0 * num_rows * hidden * itemsize)


def _ahead(name: str, hidden: int, *, adds: bool, flat: bool, dtype: str = "bf16") -> AheadCase:
    sizes = _sizes(hidden)
    warps = sizes.pop("num_warps")
    constants: dict[str, Any] = {"HIDDEN": hidden, "ADDS": adds, "FLAT": flat, **sizes}
    pointers = dict.fromkeys(("x", "added", "weight", "total", "out"), f"*{dtype}")
    strides = ("x_outer", "x_inner", "added_stride", "total_stride", "out_outer", "out_inner")
    signature = {**pointers, **dict.fromkeys(("num_rows", "inner", *strides), "i32")}
    signature |= {"eps": "fp32", **dict.fromkeys(constants, "constexpr")}
    return AheadCase(
        name=f"norms_{name}",
        kernel=norm_kernel,
        signature=signature,
        constants=constants,
        num_warps=warps,
    )


AHEAD = (
    _ahead("4096_add", 4096, adds=True, flat=True),
    _ahead("2048_add", 2048, adds=True, flat=True),
    _ahead("2880_add", 2880, adds=True, flat=True),
    _ahead("16384_add", 16384, adds=True, flat=True),
    _ahead("512_strided", 512, adds=False, flat=True),
    _ahead("128_heads", 128, adds=False, flat=False),
    _ahead("4096_float", 4096, adds=True, flat=True, dtype="fp32"),
)
