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
    prompts = [len(row["prompt"]) for row in requests]
    outputs = [row["max_tokens"] for row in requests]
    attended = sum(size * (size + 1) / 2 for size in prompts)
    last_attended = sum(prompts)  # in the last layer by each prompt's last token alone
    for layer in range(config["num_hidden_layers"]):
        is_last = layer == config["num_hidden_layers"] - 1
        tokens = len(prompts) if is_last else sum(prompts)
        _layer(floor, config, tokens, sum(prompts), last_attended if is_last else attended, 0)
    _head(floor, config, len(prompts))
    for step in range(1, max(outputs)):
        contexts = [p + step for p, n in zip(prompts, outputs, strict=True) if n > step]
        for _ in range(config["num_hidden_layers"]):
            _layer(floor, config, len(contexts), len(contexts), sum(contexts), sum(contexts))
        _head(floor, config, len(contexts))
    return floor.seconds


def _layer(
    floor: Floor, config: dict[str, Any], tokens: int, kept: int, attended: float, read: int
) -> None:
    """One layer of a pass: `tokens` go through it, `kept` leave KV, queries and keys meet
    `attended` times, KV of `read` tokens comes from memory."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, 2 * config["num_key_value_heads"] * dim
    floor.add(
        "projections",
        2 * hidden * (tokens * 2 * q + kept * kv),
        hidden * (2 * q + kv),
    )
    floor.add("attention", 4 * q * attended, kv * read)
    if "num_experts" not in config:
        weights = 3 * hidden * config["intermediate_size"]
        floor.add("mlp", 2 * weights * tokens, weights)
        return
    count, chosen = config["num_experts"], config["num_experts_per_tok"]
    weights = 3 * hidden * config["moe_intermediate_size"]
    touched = count * (1 - (1 - chosen / count) ** tokens)
    floor.add("router", 2 * hidden * count * tokens, hidden * count)
    floor.add("experts", 2 * weights * chosen * tokens, weights * touched)


def _head(floor: Floor, config: dict[str, Any], rows: int) -> None:
    weights = config["hidden_size"] * config["vocab_size"]
    floor.add("head", 2 * weights * rows, weights)
