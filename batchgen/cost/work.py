"""Useful work of a pass: FLOPs and HBM bytes, for MFU and MBU. It knows no time."""

from __future__ import annotations

import numpy as np

from batchgen.cost.api import FloatArray, PassLoad
from batchgen.cost.experts import touched_experts
from batchgen.layout import Layout, weight_bytes_per_gpu
from batchgen.model import DTYPE_BYTES, ModelSpec


def useful_flops(model: ModelSpec, load: PassLoad) -> FloatArray:
    """FLOPs that the tokens of each pass need, all ranks together; replicas do not count."""
    per_token = model.flops_per_token()
    head = per_token.pop("lm_head")
    full, windowed = model.full_layers, model.num_layers - model.full_layers
    decode, pair = model.decode_flops_per_context_token, model.prefill_flops_per_pair
    total = (load.decodes + load.chunk_tokens) * float(sum(per_token.values()))
    total += load.samples * float(head)
    total += load.context * float(full * decode)
    total += load.decodes * float(windowed * model.window * decode)
    total += load.chunk_pairs * float(full * pair)
    total += load.chunk_reads * float(full * model.prefill_flops_per_read)
    seen = np.minimum(load.chunk_pairs, 2 * model.window * load.chunk_tokens)
    total += seen * float(windowed * pair)
    summed: FloatArray = total.sum(axis=0)
    return summed


def moved_bytes(model: ModelSpec, layout: Layout, load: PassLoad) -> FloatArray:
    """HBM bytes of each pass, all GPUs of the engine: weights once, touched experts, KV."""
    union = (load.decodes + load.chunk_tokens).sum(axis=0)
    held = weight_bytes_per_gpu(model, layout)
    per_gpu = sum(held.values()) - held["experts"] - held["embedding"]
    total = np.where(union > 0, float(per_gpu * layout.gpus_per_engine), 0.0)
    if model.is_moe:
        touched = touched_experts(union.astype(np.float64), model.num_experts, model.top_k)
        size = model.expert_parameters * DTYPE_BYTES[model.expert_dtype]
        total += touched * (model.moe_layers * size)
    moved = load.context + load.chunk_reads + load.decodes + load.chunk_tokens
    total += moved.sum(axis=0) * float(model.kv_bytes_per_token)
    return total
