"""Small operations of a layer in the compiled library: bfloat16 on the CPU, so never in exact mode.

`exec.layers` has the same operations in torch, which run wherever `is_fused` says no. Shapes: T
tokens, H hidden, N query heads, V kv heads, D head_dim.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import Batch
from batchgen.exec.compiled import KINDS, is_compiled, load_library

KIND = KINDS[torch.bfloat16]


def is_fused(x: torch.Tensor) -> bool:
    """Whether the library does the small operations on tensors like `x`."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and is_compiled(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm over the last dimension."""
    flat = x.reshape(-1, x.shape[-1])
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    _norm(flat, None, weight, None, out, eps)
    return out


def add_rms_norm(
    x_TH: torch.Tensor, added_TH: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of both, and its RMS norm."""
    x_TH, added_TH = x_TH.contiguous(), added_TH.contiguous()
    sum_TH, out_TH = torch.empty_like(x_TH), torch.empty_like(x_TH)
    _norm(x_TH, added_TH, weight, sum_TH, out_TH, eps)
    return sum_TH, out_TH


def _norm(
    x: torch.Tensor,
    added: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    out: torch.Tensor,
    eps: float,
) -> None:
    sizes = (ctypes.c_int64 * 3)(*x.shape, x.stride(0))
    _library().batchgen_rms_norm(
        KIND,
        torch.get_num_threads(),
        x.data_ptr(),
        _address(added),
        weight.data_ptr(),
        _address(total),
        out.data_ptr(),
        sizes,
        eps,
    )


def place_qkv(
    qkv: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    arena: KvArena,
    layer: int,
    batch: Batch,
) -> torch.Tensor:
    """From projections [T, N + 2 V, D] to queries [T, N, D]; keys and values go into `arena`.

    Queries and keys are turned by their positions, and normed before that if `norms` are given.
    Raises ValueError for heads that the library does not know.
    """
    qkv = qkv.contiguous()
    layout = arena.layout
    heads = qkv.shape[1] - 2 * layout.heads
    q_TND = qkv.new_empty(len(qkv), heads, layout.head_dim)
    sizes = (ctypes.c_int64 * 8)(
        len(qkv),
        qkv.stride(0),
        heads,
        layout.heads,
        layout.head_dim,
        layer,
        layout.layers,
        arena.page_tokens,
    )
    q_norm, k_norm = norms or (None, None)
    if _library().batchgen_place_qkv(
        KIND,
        torch.get_num_threads(),
        qkv.data_ptr(),
        _address(q_norm),
        _address(k_norm),
        batch.cos.data_ptr(),
        batch.sin.data_ptr(),
        batch.pages.data_ptr(),
        batch.offsets.data_ptr(),
        arena.storage.data_ptr(),
        q_TND.data_ptr(),
        sizes,
        eps,
    ):
        raise ValueError(f"no compiled heads of {layout.head_dim} elements")
    return q_TND


def _library() -> Any:
    library = load_library()
    if library is None:
        raise ValueError("no compiled library")
    return library


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
