"""Matrices of bfloat16 packed once for the compiled products of the CPU, and these products.

Decides nothing but the way: AMX tiles where the processor and the kernel have them, else AVX-512,
else none, and then nothing is packed. `exec.arithmetic` and `exec.mlp` do the same in torch with
plain weights. Shapes as in `exec.mlp`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import torch

from batchgen.errors import UserError
from batchgen.exec.compiled import check, is_compiled, load_library
from batchgen.exec.system_pages import empty_in_huge_pages

SWITCH = "BATCHGEN_PRODUCTS"
WAYS = {"torch": 0, "avx512": 1, "amx": 2}


class PackedMatrix(torch.Tensor):
    """One matrix [outputs, inputs], or one per expert, in the order that `native/packed.h` defines.

    The tensor holds its elements [experts, panels, steps, 2, 16, 16, 2], the first dimension only
    for experts: torch multiplies with no such shape by mistake. `gated`: gates above as many ups,
    in panels of both; `outputs` counts the gates. `way`: a value of `WAYS`.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    outputs: int
    inputs: int
    gated: bool
    way: int


def packed_way() -> int:
    """The best value of `WAYS` here, or the one that BATCHGEN_PRODUCTS names.

    Raises UserError for a name that is none; a way that this machine lacks is replaced by the best
    that it has.
    """
    name = os.environ.get(SWITCH, "amx")
    if name not in WAYS:
        raise UserError(f"{SWITCH} is {name!r:.80}", remedy=f"set it to one of {', '.join(WAYS)}")
    library = load_library() if is_compiled(torch.bfloat16) else None
    return 0 if library is None else min(WAYS[name], library.batchgen_packed_way())


def products_way() -> str:
    """`packed_way` by its name."""
    way = packed_way()
    return next(name for name, number in WAYS.items() if number == way)


def pack(weight: torch.Tensor, way: int, *, gated: bool = False) -> PackedMatrix:
    """A packed copy of a bfloat16 matrix [outputs, inputs], or of one per expert."""
    library, weight = load_library(), weight.contiguous()
    *experts, outputs, inputs = weight.shape
    if gated:
        outputs //= 2
    panels = _up(outputs, 32) // (16 if gated else 32)
    shape = (*experts, panels, _up(inputs, 32) // 32, 2, 16, 16, 2)
    plain = empty_in_huge_pages(shape, torch.bfloat16)
    parts = zip(weight, plain, strict=True) if experts else ((weight, plain),)
    for source, target in parts:
        library.batchgen_pack(
            torch.get_num_threads(), source.data_ptr(), target.data_ptr(), *source.shape, gated
        )
    packed = torch.Tensor._make_subclass(PackedMatrix, plain)
    packed.outputs, packed.inputs, packed.gated, packed.way = outputs, inputs, gated, way
    return packed


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def packed_linear(
    x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ W.T (+ bias) for x [..., inputs]; of a gated matrix, silu(gate) * up.

    Raises ValueError for an x of another width or dtype.
    """
    outputs, inputs = weight.outputs, weight.inputs
    if x.shape[-1] != inputs or x.dtype != torch.bfloat16:
        raise ValueError(f"a packed matrix of {inputs} inputs met {tuple(x.shape)} {x.dtype}")
    flat = x if x.dim() == 2 else x.reshape(-1, inputs)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    out = torch.empty(len(flat), outputs, dtype=torch.bfloat16)
    failure = load_library().batchgen_linear(
        weight.way,
        torch.get_num_threads(),
        flat.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        len(flat),
        inputs,
        outputs,
        flat.stride(0),
        weight.gated,
    )
    check(failure, "packed on a machine of another kind")
    return out if x.dim() == 2 else out.view(*x.shape[:-1], outputs)


def packed_experts(
    x_TH: torch.Tensor,
    router: PackedMatrix | None,
    chosen: tuple[torch.Tensor, torch.Tensor] | None,
    matrices: Sequence[PackedMatrix],
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    """Routed experts [T, H]: by `router` (E outputs), or `chosen` weights and experts, [T, K] each.

    `matrices`: gate_up, gated, and down. Raises ValueError for an x of another width or dtype.
    """
    gate_up, down = matrices
    if x_TH.shape[-1] != gate_up.inputs or x_TH.dtype != torch.bfloat16:
        raise ValueError(f"experts of {gate_up.inputs} inputs met {tuple(x_TH.shape)} {x_TH.dtype}")
    x_TH = x_TH.contiguous()
    out_TH = torch.empty_like(x_TH)
    weights_TK = experts_TK = None
    if chosen is not None:
        weights_TK = chosen[0].float().contiguous()
        experts_TK = chosen[1].to(torch.int32).contiguous()
    sizes = (ctypes.c_int64 * 6)(
        len(x_TH), gate_up.inputs, gate_up.outputs, len(gate_up), top_k, renormalise
    )
    failure = load_library().batchgen_packed_experts(
        gate_up.way,
        torch.get_num_threads(),
        x_TH.data_ptr(),
        *(None if t is None else t.data_ptr() for t in (router, experts_TK, weights_TK)),
        gate_up.data_ptr(),
        down.data_ptr(),
        out_TH.data_ptr(),
        sizes,
    )
    check(failure, "packed on a machine of another kind")
    return out_TH
