"""The compiled operations of the CPU: built from `native/` when first used, then kept.

Decides nothing: `exec.attention` and `exec.layers` have the same operations in torch, which run
where there is no compiler. `exec.native_build` makes the library, for this machine's processor.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import SegmentTable
from batchgen.exec.native_build import CannotBuildError, library_path
from batchgen.oneline import one_line

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_GROUPS = 32  # query heads per kv head: TILE_QUERIES of native/attention.cpp
SWITCH = "BATCHGEN_COMPILED"


def is_compiled(dtype: torch.dtype, groups: int = 1) -> bool:
    """Whether the library covers `dtype` with `groups` query heads per kv head, and is there.

    Builds it if need be. False where it cannot be built and with BATCHGEN_COMPILED=0.
    """
    return not why_not(dtype, groups)


def why_not(dtype: torch.dtype, groups: int = 1) -> str:
    """Why `is_compiled` says no, in one line; "" if it says yes."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 turns the compiled operations off"
    if dtype not in KINDS:
        return f"no compiled operations for {dtype}"
    if groups > MAX_GROUPS:
        return f"no compiled attention for more than {MAX_GROUPS} query heads per kv head"
    return _load()[1]


def attend(arena: KvArena, layer: int, q_TND: torch.Tensor, segments: SegmentTable) -> torch.Tensor:
    """Attention [T, N, D] of all tokens of a pass; KV of the pass is written already.

    Threads are those of torch. Raises ValueError where `is_compiled` says no.
    """
    library = _load()[0]
    q_TND = q_TND.contiguous()
    out_TND = torch.empty_like(q_TND)
    _, layers, _, kv_heads, page_tokens, head_dim = arena.storage.shape
    sizes = (ctypes.c_int64 * 8)(
        *segments.tables.shape, layer, layers, q_TND.shape[1], kv_heads, page_tokens, head_dim
    )
    kind = KINDS[q_TND.dtype] if q_TND.dtype == arena.storage.dtype else -1
    if library is None or library.batchgen_paged_attention(
        kind,
        torch.get_num_threads(),
        q_TND.data_ptr(),
        arena.storage.data_ptr(),
        out_TND.data_ptr(),
        segments.tables.ctypes.data,
        segments.firsts.ctypes.data,
        segments.starts.ctypes.data,
        segments.lengths.ctypes.data,
        sizes,
    ):
        raise ValueError(f"no compiled attention for {tuple(q_TND.shape)} {q_TND.dtype}")
    return out_TND


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
    library = _load()[0]
    x_TH = x_TH.contiguous()
    out_TH = torch.empty_like(x_TH)
    experts, hidden, width = down.shape
    sizes = (ctypes.c_int64 * 6)(len(x_TH), hidden, width, experts, top_k, renormalise)
    if library is None or library.batchgen_experts(
        KINDS.get(x_TH.dtype, -1),
        torch.get_num_threads(),
        x_TH.data_ptr(),
        router.data_ptr(),
        gate_up.data_ptr(),
        down.data_ptr(),
        out_TH.data_ptr(),
        sizes,
    ):
        raise ValueError(f"no compiled experts for {x_TH.dtype}")
    return out_TH


@functools.cache
def _load() -> tuple[Any, str]:
    """The library, or None and why."""
    try:
        library = ctypes.CDLL(str(library_path()))
    except CannotBuildError as error:
        return None, str(error)
    except OSError as error:
        return None, f"the compiled library cannot be loaded: {one_line(error)}"
    for function, pointers in (("batchgen_paged_attention", 8), ("batchgen_experts", 6)):
        entry = getattr(library, function)
        entry.restype = ctypes.c_int
        entry.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * pointers]
    return library, ""
