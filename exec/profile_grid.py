"""Which points of a machine are measured, by device: sizes that passes have. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which points are measured and for how long each. Counts in tokens, rows and pages.

    Jobs of whole passes, `rounds` times: `prompts` rows of at most `outputs` tokens, in so many
    `seats`, and prompts alone in passes of up to `max_prefill_tokens`; no further job is begun
    after `patience_s`. Random prompts have at most `prompt_tokens`.
    """

    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    rows: tuple[int, ...] = (1, 4, 16, 64, 128)
    contexts: tuple[int, ...] = (16, 64, 256, 1024, 2048)
    chunks: tuple[int, ...] = (16, 64, 256, 512)
    starts: tuple[int, ...] = (0, 256, 1024)
    pages: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 0.05
    max_kv_tokens: int = 1 << 17
    prompts: int = 128
    outputs: int = 256
    seats: tuple[int, ...] = (4, 16, 128)
    prompt_tokens: int = 2048
    max_prefill_tokens: int = 1 << 14
    rounds: int = 3  # processors change their speed within seconds
    patience_s: float = 60.0


QUICK = Grid(
    tokens=(1, 8, 64, 256),
    rows=(1, 8, 32),
    contexts=(16, 128, 512),
    chunks=(16, 128),
    starts=(0, 256),
    pages=(1, 16),
    seconds=0.01,
    max_kv_tokens=1 << 14,
    prompts=48,
    outputs=96,
    seats=(4, 64),
    max_prefill_tokens=1 << 12,
    rounds=1,
)

LOOK = Grid(
    tokens=(1, 16, 128),
    rows=(1, 16),
    contexts=(16, 256),
    chunks=(16, 128),
    starts=(0, 128),
    pages=(1, 8),
    seconds=0.005,
    max_kv_tokens=1 << 13,
    prompts=16,
    outputs=32,
    seats=(4, 32),
    max_prefill_tokens=1 << 11,
    rounds=1,
    patience_s=4.0,
)
"""Seconds in all, for a prediction that nobody has prepared."""

CUDA = Grid(
    tokens=(1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    rows=(1, 4, 16, 64, 128, 256, 512),
    contexts=(64, 256, 1024, 4096, 8192, 16384, 32768),
    chunks=(64, 256, 1024, 2048, 4096, 8192),
    starts=(0, 2048, 8192, 24576),
    pages=(1, 4, 16, 64, 256),
    max_kv_tokens=1 << 20,
    prompts=512,
    outputs=256,
    seats=(8, 64, 512),
    prompt_tokens=4096,
    max_prefill_tokens=1 << 15,
    rounds=2,
)

CUDA_QUICK = Grid(
    tokens=(1, 16, 64, 256, 1024, 4096),
    rows=(1, 16, 128),
    contexts=(64, 512, 4096),
    chunks=(256, 2048),
    starts=(0, 2048),
    pages=(1, 16),
    seconds=0.01,
    max_kv_tokens=1 << 17,
    prompts=64,
    outputs=48,
    seats=(4, 64),
    prompt_tokens=1024,
    max_prefill_tokens=1 << 13,
    rounds=1,
    patience_s=15.0,
)


def grid_of(device: str, *, quick: bool = False) -> Grid:
    """The grid of "cpu" or "cuda"."""
    whole, short = (CUDA, CUDA_QUICK) if device == "cuda" else (Grid(), QUICK)
    return short if quick else whole
