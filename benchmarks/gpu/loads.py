"""Models and loads of the throughput cells. Runs none, and imports no torch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from qwen_config import qwen_config

Ints = npt.NDArray[np.int64]
PAGE_TOKENS = 64
TOKEN_BUDGET = 8192
DEPTH = 2  # passes that are launched before the first is known
FULL = 0.8  # share of the seats from which on a pass counts as steady


# Of the large models: their vocabulary, head and context.
LARGE = {"vocab_size": 151_936, "head_dim": 128, "max_position_embeddings": 40_960}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3-8b": qwen_config(
        **LARGE,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "qwen3-30b-a3b": qwen_config(
        **LARGE,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        num_experts=128,
        num_experts_per_tok=8,
    ),
    "mixtral-8x7b": {
        **qwen_config(
            **LARGE,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=None,
        ),
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 32_000,
        "rms_norm_eps": 1e-5,
    },
}
SHAPES = ((128, 1024), (512, 512), (1024, 1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A model and the lengths of its rows; `sigma`: lognormal around them, 0: all the same."""

    model: str
    prompt_tokens: int
    output_tokens: int
    sigma: float = 0.0


CELLS = {
    **{
        f"{model}-{prompt}-{output}": Load(model=model, prompt_tokens=prompt, output_tokens=output)
        for model in ("qwen3-8b", "qwen3-30b-a3b")
        for prompt, output in SHAPES
    },
    "mixtral-8x7b-512-512": Load(model="mixtral-8x7b", prompt_tokens=512, output_tokens=512),
    "qwen3-8b-lognormal": Load(model="qwen3-8b", prompt_tokens=512, output_tokens=512, sigma=0.5),
}


def lengths(load: Load, rows: int) -> tuple[Ints, Ints]:
    """Prompt and output tokens of each row."""
    if not load.sigma:
        return np.full(rows, load.prompt_tokens), np.full(rows, load.output_tokens)
    rng = np.random.default_rng(0)

    def around(mean: int) -> Ints:
        drawn = np.exp(rng.normal(np.log(mean) - load.sigma**2 / 2, load.sigma, rows))
        return np.maximum(1, np.rint(drawn)).astype(np.int64)

    return around(load.prompt_tokens), around(load.output_tokens)
