"""The least time that a machine's ceilings allow for a batch: no system can be faster on it.

Phase by phase, operation by operation: each takes as long as its multiplications at the measured
speed of matrix products, or as its weights or KV at the measured speed of memory, whichever is
longer. All rows decode together from the first step on, which reads weights as seldom as possible;
nothing is computed that no output depends on. Norms, sampling and scheduling cost nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchgen.catalog.hf_config import spec_from_config
from batchgen.cost.experts import touched_experts
from batchgen.model import ModelSpec

ELEMENT_BYTES = 2  # bfloat16


@dataclass
class Floor:
    """Seconds by operation, added up with `add`."""

    matmul_flops: float
    memory_bytes_s: float
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, flops: float, elements: float) -> None:
        """One operation: its FLOPs, and the elements that it reads from memory."""
        bound_s = max(flops / self.matmul_flops, elements * ELEMENT_BYTES / self.memory_bytes_s)
        self.seconds[name] = self.seconds.get(name, 0.0) + bound_s


def floor_s(
    config: dict[str, Any], requests: Sequence[dict[str, Any]], matmul_flops: float, memory: float
) -> dict[str, float]:
    """Seconds by operation of a model of `shapes.SHAPES` on some requests."""
    floor = Floor(matmul_flops, memory)
    model = spec_from_config(config, name="peer", place="shapes")
    prompts = [len(row["prompt"]) for row in requests]
    outputs = [row["max_tokens"] for row in requests]
    attended = sum(size * (size + 1) / 2 for size in prompts)
    last_attended = sum(prompts)  # in the last layer by each prompt's last token alone
    for layer in range(model.num_layers):
        is_last = layer == model.num_layers - 1
        tokens = len(prompts) if is_last else sum(prompts)
        _layer(floor, model, tokens, sum(prompts), last_attended if is_last else attended, 0)
    _head(floor, model, len(prompts))
    for step in range(1, max(outputs)):
        contexts = [p + step for p, n in zip(prompts, outputs, strict=True) if n > step]
        for _ in range(model.num_layers):
            _layer(floor, model, len(contexts), len(contexts), sum(contexts), sum(contexts))
        _head(floor, model, len(contexts))
    return floor.seconds


def _layer(
    floor: Floor, model: ModelSpec, tokens: int, kept: int, attended: float, read: int
) -> None:
    """One layer of a pass: `tokens` go through it, `kept` leave KV, queries and keys meet
    `attended` times, KV of `read` tokens comes from memory."""
    weights, kv = model.attention_matmul_parameters, model.kv_values_per_layer
    kv_weights = model.hidden * kv
    flops = 2 * ((weights - kv_weights) * tokens + kv_weights * kept)
    floor.add("projections", flops, weights)
    floor.add("attention", model.decode_flops_per_context_token * attended, kv * read)
    if not model.is_moe:
        floor.add("mlp", 2 * model.ffn_parameters * tokens, model.ffn_parameters)
        return
    touched = float(touched_experts(np.array(float(tokens)), model.num_experts, model.top_k))
    one, router = model.expert_matmul_parameters, model.router_parameters
    floor.add("router", 2 * router * tokens, router)
    floor.add("experts", 2 * one * model.top_k * tokens, one * touched)


def _head(floor: Floor, model: ModelSpec, rows: int) -> None:
    floor.add("head", 2 * model.embedding_parameters * rows, model.embedding_parameters)
