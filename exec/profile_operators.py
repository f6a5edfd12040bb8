"""Time the operators of a pass one by one: products, attention, experts, copies between tiers.

Runs the executor's own code (`linear`, `paged_attention`, `SparseMlp`, `copy_pages`). Every table
is a list of measured points in seconds; nothing is fitted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from batchgen.exec.arena import KvArena, copy_pages
from batchgen.exec.attention import paged_attention
from batchgen.exec.batch import Segment, build_batch
from batchgen.exec.config import ModelConfig
from batchgen.exec.layers import SparseMlp, linear
from batchgen.exec.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which points are measured and for how long each. Counts in tokens, rows and pages."""

    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    rows: tuple[int, ...] = (1, 4, 16, 64, 128)
    contexts: tuple[int, ...] = (16, 64, 256, 1024, 2048)
    chunks: tuple[int, ...] = (16, 64, 256, 512)
    starts: tuple[int, ...] = (0, 256, 1024)
    pages: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 0.05
    max_kv_tokens: int = 1 << 17


QUICK = Grid(
    tokens=(1, 8, 64, 256),
    rows=(1, 8, 32),
    contexts=(16, 128, 512),
    chunks=(16, 128),
    starts=(0, 256),
    pages=(1, 16),
    seconds=0.01,
    max_kv_tokens=1 << 14,
)


def gemm_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(n, k) of every product of a pass: qkv, output, both halves of the MLP, router, head."""
    hidden = config.hidden_size
    shapes = {
        (config.q_size + 2 * config.kv_size, hidden),
        (hidden, config.q_size),
        (config.vocab_size, hidden),
    }
    if config.moe is not None:
        inner = config.moe.intermediate_size
        shapes |= {(config.moe.num_experts, hidden), (2 * inner, hidden), (hidden, inner)}
    if config.moe is None or len(config.moe.sparse_layers) < config.num_layers:
        shapes |= {(2 * config.intermediate_size, hidden), (hidden, config.intermediate_size)}
    return sorted(shapes)


def timed(run: Callable[[], object], seconds: float) -> float:
    """Median duration of `run` in seconds over at least three calls and about `seconds`.

    The median, since a shared machine disturbs some calls and never speeds one up.
    """
    run()  # the first call pays for caches and allocations
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def time_gemms(
    shapes: Iterable[tuple[int, int]], grid: Grid, kind: torch.dtype, dtype: str
) -> Iterable[dict[str, Any]]:
    for n, k in shapes:
        # Several copies of the weight in turn: a pass never finds a layer's weights in cache.
        copies = max(1, min(8, (64 << 20) // (n * k * kind.itemsize)))
        weights = [torch.randn(n, k).to(kind) for _ in range(copies)]
        for m in grid.tokens:
            x = torch.randn(m, k).to(kind)

            def run(x: torch.Tensor = x, weights: list[torch.Tensor] = weights) -> None:
                for weight in weights:
                    linear(x, weight)

            seconds = timed(run, grid.seconds) / copies
            yield {"m": m, "n": n, "k": k, "dtype": dtype, "seconds": seconds}


def _attention(
    config: ModelConfig,
    kind: torch.dtype,
    page_tokens: int,
    decodes: Sequence[Segment],
    chunks: Sequence[Segment],
    seconds: float,
) -> float:
    """Seconds of one layer's KV write and attention for these segments."""
    segments = [*decodes, *chunks]
    ends = [s.start + s.length for s in segments]
    arena = _arena(config, sum(-(-end // page_tokens) for end in ends), kind, page_tokens)
    for segment, end in zip(segments, ends, strict=True):
        arena.reserve(segment.slot, end)
    count = sum(s.length for s in segments)
    batch = build_batch(arena, np.zeros(count, dtype=np.int64), decodes, chunks)
    q = torch.randn(count, config.num_heads, config.head_dim).to(kind)
    kv = torch.randn(count, config.num_kv_heads, config.head_dim).to(kind)

    def run() -> None:
        arena.write(0, batch.pages, batch.offsets, kv, kv)
        paged_attention(arena, 0, q, batch)

    return timed(run, seconds)


def _arena(config: ModelConfig, pages: int, kind: torch.dtype, page_tokens: int) -> KvArena:
    """An arena with one layer: attention of a layer touches no other."""
    return KvArena(
        "profile",
        pages,
        num_layers=1,
        num_kv_heads=config.num_kv_heads,
        page_tokens=page_tokens,
        head_dim=config.head_dim,
        dtype=kind,
    )


def time_decode_attention(
    config: ModelConfig, grid: Grid, kind: torch.dtype, page_tokens: int
) -> Iterable[dict[str, Any]]:
    for rows in grid.rows:
        for context in grid.contexts:
            if context <= config.max_context and rows * context <= grid.max_kv_tokens:
                segments = [Segment(slot=r, start=context - 1, length=1) for r in range(rows)]
                seconds = _attention(config, kind, page_tokens, segments, [], grid.seconds)
                yield {"rows": rows, "context": context, "seconds": seconds}


def time_prefill_attention(
    config: ModelConfig, grid: Grid, kind: torch.dtype, page_tokens: int
) -> Iterable[dict[str, Any]]:
    for chunk in grid.chunks:
        for start in grid.starts:
            if start + chunk <= config.max_context:
                segment = Segment(slot=0, start=start, length=chunk)
                seconds = _attention(config, kind, page_tokens, [], [segment], grid.seconds)
                yield {"chunk": chunk, "start": start, "seconds": seconds}


def time_experts(worker: Worker, grid: Grid, kind: torch.dtype) -> Iterable[dict[str, Any]]:
    """One sparse MLP with router, as a whole: grouping and uneven experts are part of its cost."""
    mlp = next(layer.mlp for layer in worker.model.layers if isinstance(layer.mlp, SparseMlp))
    for m in grid.tokens:
        x = torch.randn(m, worker.config.hidden_size).to(kind)

        def run(x: torch.Tensor = x) -> None:
            mlp(x)

        yield {"m": m, "seconds": timed(run, grid.seconds)}


def time_copies(
    config: ModelConfig, grid: Grid, kind: torch.dtype, page_tokens: int
) -> Iterable[dict[str, Any]]:
    most = max(grid.pages)
    tiers = {}
    for name in ("hbm", "host"):
        tiers[name] = KvArena(
            name,
            most,
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            page_tokens=page_tokens,
            head_dim=config.head_dim,
            dtype=kind,
        )
        tiers[name].reserve(0, most * page_tokens)
    for source, target in (("hbm", "host"), ("host", "hbm")):
        for pages in grid.pages:

            def run(a: KvArena = tiers[source], b: KvArena = tiers[target], n: int = pages) -> None:
                copy_pages(a, b, 0, 0, n)

            yield {
                "from": source,
                "to": target,
                "bytes": pages * tiers[source].page_bytes,
                "seconds": timed(run, grid.seconds),
            }


def bandwidths(copies: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Bytes per second of the largest copy in each direction."""
    best: dict[str, tuple[int, float]] = {}
    for item in copies:
        name, point = (
            f"{item['from']}_to_{item['to']}",
            (item["bytes"], item["bytes"] / item["seconds"]),
        )
        best[name] = max(best.get(name, point), point)
    return {name: rate for name, (_, rate) in best.items()}
