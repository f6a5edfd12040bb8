"""The compiled operations of the CPU: built from `native/` when first used, then kept.

Decides nothing: `exec.attention` and `exec.mlp` have the same operations in torch, which run where
there is no compiler. `exec.native_build` makes the library, for this machine's processor.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

from batchgen.exec.native_build import CannotBuildError, library_path
from batchgen.oneline import one_line

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SWITCH = "BATCHGEN_COMPILED"
NO_MEMORY = 2


def is_compiled(dtype: torch.dtype) -> bool:
    """Whether the library covers `dtype`, and is there.

    Builds it if need be. False where it cannot be built and with BATCHGEN_COMPILED=0.
    """
    return not why_not(dtype)


def why_not(dtype: torch.dtype) -> str:
    """Why `is_compiled` says no, in one line; "" if it says yes."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 turns the compiled operations off"
    if dtype not in KINDS:
        return f"no compiled operations for {dtype}"
    return _load()[1]


def sparse_mlp(
    x_TH: torch.Tensor,
    router: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    """Routed experts [T, H]: router [E, H], gate_up [E, 2I, H], down [E, H, I], all contiguous.

    Raises ValueError where `is_compiled` says no.
    """
    return _experts(x_TH, router, None, None, gate_up, down, top_k, renormalise)


def chosen_experts(
    x_TH: torch.Tensor,
    weights_TK: torch.Tensor,
    experts_TK: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """As `sparse_mlp`, for experts that were chosen already. Raises ValueError as it does."""
    chosen = experts_TK.to(torch.int32).contiguous(), weights_TK.float().contiguous()
    return _experts(x_TH, None, *chosen, gate_up, down, experts_TK.shape[1], False)


def _experts(
    x_TH: torch.Tensor,
    router: torch.Tensor | None,
    experts_TK: torch.Tensor | None,
    weights_TK: torch.Tensor | None,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    library = load_library()
    x_TH = x_TH.contiguous()
    out_TH = torch.empty_like(x_TH)
    experts, hidden, width = down.shape
    sizes = (ctypes.c_int64 * 6)(len(x_TH), hidden, width, experts, top_k, renormalise)
    problem = f"no compiled experts for {x_TH.dtype}"
    if library is None:
        raise ValueError(problem)
    failure = library.batchgen_experts(
        KINDS.get(x_TH.dtype, -1),
        torch.get_num_threads(),
        x_TH.data_ptr(),
        *(0 if given is None else given.data_ptr() for given in (router, experts_TK, weights_TK)),
        gate_up.data_ptr(),
        down.data_ptr(),
        out_TH.data_ptr(),
        sizes,
    )
    check(failure, problem)
    return out_TH


def check(failure: int, problem: str) -> None:
    """Raise what an operation of the library returned (`native/failures.h`): MemoryError, or
    ValueError with the problem."""
    if failure == NO_MEMORY:
        raise MemoryError("no memory for the compiled operations of a pass")
    if failure:
        raise ValueError(problem)


def block_tops(logits_RBL: torch.Tensor, none: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Highest logit of each block [R, B]; of each row [R] the first of the highest, or `none` where
    that is not finite. Float32 logits [R, B, L], L a multiple of 16.

    Raises ValueError where `is_compiled` says no.
    """
    library = load_library()
    if library is None:
        raise ValueError("no compiled library")
    logits_RBL = logits_RBL.contiguous()
    tops_RB = torch.empty(logits_RBL.shape[:2])
    best_R = torch.empty(len(logits_RBL), dtype=torch.int64)
    library.batchgen_block_tops(
        torch.get_num_threads(),
        logits_RBL.data_ptr(),
        *logits_RBL.shape,
        none,
        tops_RB.data_ptr(),
        best_R.data_ptr(),
    )
    return tops_RB, best_R


def block_masses(
    logits_RBL: torch.Tensor, rows_S: torch.Tensor, best_S: torch.Tensor, scales_S: torch.Tensor
) -> torch.Tensor:
    """Sums of exp((logit - best) * scale) over each block of some rows [S, B]; shapes as above.

    Raises ValueError where `is_compiled` says no.
    """
    library = load_library()
    if library is None:
        raise ValueError("no compiled library")
    sums_SB = torch.empty(len(rows_S), logits_RBL.shape[1])
    library.batchgen_block_masses(
        torch.get_num_threads(),
        logits_RBL.data_ptr(),
        rows_S.data_ptr(),
        len(rows_S),
        *logits_RBL.shape[1:],
        best_S.data_ptr(),
        scales_S.data_ptr(),
        sums_SB.data_ptr(),
    )
    return sums_SB


def copy_pages(
    source: torch.Tensor, theirs: torch.Tensor, target: torch.Tensor, ours: torch.Tensor
) -> None:
    """target[ours] = source[theirs]: contiguous arenas [pages, ...] of one dtype on the CPU, page
    numbers int64.

    Raises ValueError where `is_compiled` says no.
    """
    library = load_library()
    if library is None:
        raise ValueError("no compiled library")
    library.batchgen_copy_pages(
        source.data_ptr(),
        theirs.contiguous().data_ptr(),
        target.data_ptr(),
        ours.contiguous().data_ptr(),
        len(ours),
        source[0].nbytes,
    )


def load_library() -> Any:
    """The library, or None."""
    return _load()[0]


@functools.cache
def _load() -> tuple[Any, str]:
    """The library, or None and why."""
    try:
        library = ctypes.CDLL(str(library_path()))
    except CannotBuildError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the compiled library cannot be loaded: {one_line(error)}"
    for function, pointers, floats in (
        ("batchgen_paged_attention", 9, 1),
        ("batchgen_experts", 8, 0),
        ("batchgen_packed_experts", 8, 0),
        ("batchgen_rms_norm", 6, 1),
        ("batchgen_place_qkv", 10, 1),
    ):
        entry = getattr(library, function)
        entry.restype = ctypes.c_int
        entry.argtypes = [
            *[ctypes.c_int] * 2,
            *[ctypes.c_void_p] * pointers,
            *[ctypes.c_float] * floats,
        ]
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.batchgen_packed_way.argtypes = []
    library.batchgen_pack.restype = None
    library.batchgen_pack.argtypes = [ctypes.c_int, *[pointer] * 2, *[size] * 2, ctypes.c_int]
    library.batchgen_linear.argtypes = [
        *[ctypes.c_int] * 2,
        *[pointer] * 4,
        *[size] * 4,
        ctypes.c_int,
    ]
    library.batchgen_block_tops.restype = None
    library.batchgen_block_tops.argtypes = [ctypes.c_int, pointer, *[size] * 4, *[pointer] * 2]
    library.batchgen_block_masses.restype = None
    library.batchgen_block_masses.argtypes = [
        ctypes.c_int,
        *[pointer] * 2,
        *[size] * 3,
        *[pointer] * 3,
    ]
    library.batchgen_copy_pages.restype = None
    library.batchgen_copy_pages.argtypes = [*[pointer] * 4, *[size] * 2]
    library.batchgen_layers.argtypes = [pointer, size, pointer]
    library.batchgen_logits.argtypes = [
        *[ctypes.c_int] * 2,
        *[pointer] * 4,
        *[size] * 3,
        ctypes.c_float,
    ]
    return library, ""
