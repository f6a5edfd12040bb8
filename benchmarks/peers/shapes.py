"""Models and loads of the comparison with peers: random checkpoints and requests. Runs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from qwen_config import qwen_config

VOCABULARY = 4096


SMALL = {"vocab_size": VOCABULARY, "head_dim": 64, "max_position_embeddings": 4096}


SHAPES: dict[str, dict[str, Any]] = {
    "moe-46m": qwen_config(
        **SMALL,
        intermediate_size=1024,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        moe_intermediate_size=256,
        num_experts=16,
        num_experts_per_tok=4,
    ),
    "moe-320m": qwen_config(
        **SMALL,
        intermediate_size=1024,
        hidden_size=768,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=4,
        moe_intermediate_size=256,
        num_experts=64,
        num_experts_per_tok=6,
    ),
    "dense-30m": qwen_config(
        **SMALL,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    "dense-160m": qwen_config(
        **SMALL,
        hidden_size=1024,
        intermediate_size=3328,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
    ),
}


def write_model(name: str, directory: Path) -> int:
    """A random bfloat16 checkpoint of a shape; returns its number of parameters."""
    from checkpoints import write_random

    from batchgen.exec.init import write_byte_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    write_byte_tokenizer(directory)
    return write_random(SHAPES[name], directory)


def requests(name: str) -> list[dict[str, Any]]:
    """Prompts as token ids and numbers of tokens to produce. Every request produces all of them.

    ragged: 128 rows, prompts 16 to 255, outputs 8 to 255. heavy: 192 rows, lognormal prompts about
    120 and outputs about 70 with sigma 1, at most 700. long: 64 rows, prompts 300 to 1,200, outputs
    8 to 47.
    """
    rng = np.random.default_rng(7)
    if name == "ragged":
        prompts, outputs = rng.integers(16, 256, 128), rng.integers(8, 256, 128)
    elif name == "heavy":
        prompts = np.clip(rng.lognormal(np.log(120), 0.6, 192), 4, 1000)
        outputs = np.clip(rng.lognormal(np.log(70), 1.0, 192), 1, 700)
    elif name == "long":
        prompts, outputs = rng.integers(300, 1201, 64), rng.integers(8, 48, 64)
    else:
        raise ValueError(f"no load {name!r}")
    return [
        {"prompt": rng.integers(1, VOCABULARY, int(p)).tolist(), "max_tokens": int(n)}
        for p, n in zip(prompts, outputs, strict=True)
    ]


LOADS = ("ragged", "heavy", "long")
