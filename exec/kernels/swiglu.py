"""The gate of an MLP: silu(gate) * up, or gpt-oss's clamped form. Knows no matrices.

*Idea.* The product before it writes [T, 2 I], gate before up; this reads both halves once and
writes [T, I]. A block of threads takes a tile of rows and columns. Its width is the largest power
of two that divides I, so that no thread is masked out in the widths of models (768, 12288, 14336),
and as many rows as make 2048 elements.

*Rounding* is that of `exec.mlp.gated`, which runs one operation of torch after the other: each
result is rounded to the dtype.

*Bytes.* 3 T I elements. *FLOPs* about 6 T I. *Floor* on an H200 (4.3 TB/s copied): 8192 tokens with
I = 12288 in bfloat16 are 604 MB, 140 us; 256 tokens 4.4 us.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from batchgen.exec.kernels.launching import AheadCase, Work, config

TILE = 2048  # elements


def swiglu_reference(
    gate_up: torch.Tensor, clamp: tuple[float, float] | None = None
) -> torch.Tensor:
    """As `swiglu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    if clamp is None:
        return torch.nn.functional.silu(gate) * up
    limit, alpha = clamp
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


@triton.jit(do_not_specialize=["num_rows"])
def swiglu_kernel(
    gate_up: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    stride: tl.tensor,
    out_stride: tl.tensor,
    limit: tl.tensor,
    alpha: tl.tensor,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CLAMPED: tl.constexpr,
) -> None:
    """Programs: tiles of rows by tiles of columns."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    mask = (rows < num_rows) & (columns < WIDTH)
    far = rows.to(tl.int64)
    source = gate_up + far * stride + columns
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=mask, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    if CLAMPED:
        # Comparisons and not minima: a NaN has to stay one.
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        inner = (gate * alpha).to(dtype).to(tl.float32)
        share = (1.0 / (1.0 + tl.exp(-inner))).to(dtype).to(tl.float32)
        gate = (gate * share).to(dtype).to(tl.float32)
        up = (up + 1.0).to(dtype).to(tl.float32)
    else:
        gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + far * out_stride + columns, (gate * up).to(dtype), mask=mask)


def swiglu(
    gate_up: torch.Tensor,
    clamp: tuple[float, float] | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """silu(gate) * up of `gate_up` [T, 2 I], gate before up; with `clamp`, its limit and alpha,
    (up + 1) * gate * sigmoid(alpha * gate) of a gate of at most `limit` and an up within it."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None:
        out = torch.empty((num_rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if not num_rows:
        return out
    sizes = _sizes(num_rows, width)
    limit, alpha = clamp or (0.0, 0.0)
    grid = (triton.cdiv(num_rows, sizes["ROWS"]), triton.cdiv(width, sizes["COLUMNS"]))
    swiglu_kernel[grid](
        gate_up,
        out,
        num_rows,
        gate_up.stride(0),
        out.stride(0),
        limit,
        alpha,
        WIDTH=width,
        CLAMPED=clamp is not None,
        **sizes,
    )
    return out


def _sizes(num_rows: int, width: int) -> dict[str, int]:
    columns = min(width & -width, TILE)
    if columns < 128:  # no large power divides it: a few threads are masked out
        columns = min(triton.next_power_of_2(width), 512)
    rows = max(1, TILE // columns)
    rows = min(rows, triton.next_power_of_2(num_rows))
    return config("swiglu", str(width), {"ROWS": rows, "COLUMNS": columns, "num_warps": 4})


def swiglu_work(num_rows: int, width: int, itemsize: int) -> Work:
    return Work(flops=6.0 * num_rows * width, bytes=3.0 * num_rows * width * itemsize)


def _ahead(name: str, num_rows: int, width: int, *, clamped: bool, dtype: str) -> AheadCase:
    sizes = _sizes(num_rows, width)
    warps = sizes.pop("num_warps")
    constants: dict[str, Any] = {"WIDTH": width, "CLAMPED": clamped, **sizes}
    signature = {"gate_up": f"*{dtype}", "out": f"*{dtype}"}
    signature |= dict.fromkeys(("num_rows", "stride", "out_stride"), "i32")
    signature |= {"limit": "fp32", "alpha": "fp32", **dict.fromkeys(constants, "constexpr")}
    return AheadCase(
        name=f"swiglu_{name}",
        kernel=swiglu_kernel,
        signature=signature,
        constants=constants,
        num_warps=warps,
    )


AHEAD = (
    _ahead("12288", 8192, 12288, clamped=False, dtype="bf16"),
    _ahead("768", 8192, 768, clamped=False, dtype="bf16"),
    _ahead("2880_clamped", 8192, 2880, clamped=True, dtype="bf16"),
    _ahead("12288_float", 8192, 12288, clamped=False, dtype="fp32"),
)
