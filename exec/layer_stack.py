"""The layers of a model in one call of the compiled library: packed bfloat16 on the CPU.

Does what the layers do one by one, in the same operations and the same order, so with the same bits
(`native/layers.cpp`); between the operations of a small model the interpreter takes time. Models
that it does not know run layer by layer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.attention.compiled import CompiledBackend
from batchgen.exec.batch import Batch
from batchgen.exec.compiled import check, load_library
from batchgen.exec.layers import GroupedAttention, Layer
from batchgen.exec.mlp import SparseMlp
from batchgen.exec.packed import PackedMatrix

POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64


class _Layer(ctypes.Structure):
    """`BatchgenLayer` of native/layers.cpp, field by field."""

    _fields_ = (
        *((name, POINTER) for name in ("norm", "qkv", "qkv_bias", "q_norm", "k_norm")),
        *((name, POINTER) for name in ("out", "out_bias", "sinks")),
        *((name, POINTER) for name in ("feed_norm", "router", "gate_up", "down", "down_bias")),
        *((name, SIZE) for name in ("window", "width", "experts", "top_k", "renormalise")),
        ("scale", ctypes.c_float),
    )


class _Pass(ctypes.Structure):
    """`BatchgenPass` of native/layers.cpp, field by field."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "cosines", "sines", "pages", "offsets", "storage")),
        *((name, POINTER) for name in ("tables", "firsts", "starts", "lengths")),
        *((name, SIZE) for name in ("tokens", "hidden", "heads", "kv_heads", "head_dim")),
        *((name, SIZE) for name in ("page_tokens", "layers", "segments", "table_width")),
        *((name, SIZE) for name in ("instructions", "way", "threads")),
        ("eps", ctypes.c_float),
    )


class LayerStack:
    """All layers of a model, by the addresses of their weights."""

    def __init__(self, layers: Sequence[Layer], backend: CompiledBackend) -> None:
        self._kept = layers  # who owns what the addresses point to
        self._table = (_Layer * len(layers))(*(_layer(one) for one in layers))
        self._instructions = int(backend.instructions)
        first = layers[0].attention
        assert isinstance(first, GroupedAttention)
        assert isinstance(first.qkv, PackedMatrix)
        self._eps, self._heads, self._way = first.eps, first.config.num_heads, first.qkv.way

    def run(self, x_TH: torch.Tensor, arena: KvArena, batch: Batch, count: int) -> torch.Tensor:
        """Hidden states behind the first `count` layers, in place of `x_TH`; KV goes into `arena`.

        Raises ValueError for a shape that the library does not know, MemoryError without memory.
        """
        layout, prepared = arena.layout, batch.attention
        asked = _Pass(
            x_TH.data_ptr(),
            batch.cos.data_ptr(),
            batch.sin.data_ptr(),
            batch.pages.data_ptr(),
            batch.offsets.data_ptr(),
            arena.storage.data_ptr(),
            *prepared.addresses,
            *x_TH.shape,
            self._heads,
            layout.heads,
            layout.head_dim,
            arena.page_tokens,
            layout.layers,
            *prepared.tables.shape,
            self._instructions,
            self._way,
            torch.get_num_threads(),
            self._eps,
        )
        failure = load_library().batchgen_layers(self._table, count, ctypes.byref(asked))
        check(failure, f"no compiled layers for {tuple(x_TH.shape)} {x_TH.dtype}")
        return x_TH

    def logits(
        self, x_RH: torch.Tensor, norm: torch.Tensor, head: PackedMatrix, eps: float
    ) -> torch.Tensor:
        """Float32 logits [R, vocab] of hidden states behind the last layer, rounded as in bfloat16.

        Raises ValueError as `run` does.
        """
        x_RH = x_RH.contiguous()
        logits_RV = torch.empty(len(x_RH), head.outputs)
        failure = load_library().batchgen_logits(
            head.way,
            torch.get_num_threads(),
            x_RH.data_ptr(),
            norm.data_ptr(),
            head.data_ptr(),
            logits_RV.data_ptr(),
            *x_RH.shape,
            head.outputs,
            eps,
        )
        check(failure, f"no compiled head for {tuple(x_RH.shape)} {x_RH.dtype}")
        return logits_RV


def stack_layers(layers: Sequence[Any], backend: Any) -> LayerStack | None:
    """The layers as a stack; None unless the library knows all that they do."""
    if not isinstance(backend, CompiledBackend) or not all(map(_is_known, layers)):
        return None
    shapes = {(one.attention.config.num_heads, one.attention.eps) for one in layers}
    return LayerStack(layers, backend) if len(shapes) == 1 else None


def _is_known(layer: Any) -> bool:
    if not isinstance(layer, Layer) or not isinstance(layer.attention, GroupedAttention):
        return False
    attention, mlp = layer.attention, layer.mlp
    products = [attention.qkv, attention.out, mlp.gate_up, mlp.down]
    if isinstance(mlp, SparseMlp):
        known = mlp.packed_router is not None and mlp.shared is None
    else:
        known = mlp.gate_up_bias is None
    return (
        known
        and (attention.q_norm is None) == (attention.k_norm is None)
        and all(isinstance(weight, PackedMatrix) for weight in products)
    )


def _layer(layer: Layer) -> _Layer:
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, GroupedAttention)
    assert isinstance(mlp.gate_up, PackedMatrix)
    experts, top_k, renormalise = 0, 0, False
    router = down_bias = None
    if isinstance(mlp, SparseMlp):
        router, experts, top_k = mlp.packed_router, len(mlp.gate_up), mlp.router.experts_per_token
        renormalise = mlp.router.config.normalise
    else:
        down_bias = mlp.down_bias
    return _Layer(
        *map(
            _address,
            (
                layer.norms[0],
                attention.qkv,
                attention.qkv_bias,
                attention.q_norm,
                attention.k_norm,
                attention.out,
                attention.out_bias,
                attention.sinks,
                layer.norms[1],
                router,
                mlp.gate_up,
                mlp.down,
                down_bias,
            ),
        ),
        attention.config.window,
        mlp.gate_up.outputs,
        experts,
        top_k,
        renormalise,
        attention.config.scale,
    )


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
