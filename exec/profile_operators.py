"""Time the operators of a pass one by one: products, attention, experts, copies between tiers.

Runs the executor's own code (`Arithmetic`, the backend of attention, `SparseMlp`, `move_pages`),
not whole passes. Tables are lists of measured points in seconds, in the form that
`batchgen.cost.profile_schema` defines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from batchgen.errors import UserError
from batchgen.exec.arena import KvArena
from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.attention import Heads, choose_backend
from batchgen.exec.batch import IntArray, PassRows
from batchgen.exec.config import AttentionConfig, LatentConfig, ModelConfig
from batchgen.exec.copier import move_pages
from batchgen.exec.layers import GroupedAttention, Layer
from batchgen.exec.mlp import SparseMlp

MAX_WEIGHT_BYTES = MAX_KV_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Which points are measured and for how long each. Counts in tokens, rows and pages.

    Jobs of whole passes, `rounds` times: `prompts` rows of at most `outputs` tokens, in so many
    `seats`, and prompts alone in passes of up to `max_prefill_tokens`; no further job is begun
    after `patience_s`.
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


def undisturbed(samples: Sequence[float]) -> float:
    """The lower quartile: other work on the machine delays calls and never speeds one up."""
    return sorted(samples)[len(samples) // 4]


def timed(run: Callable[[], object], seconds: float) -> float:
    """Typical undisturbed duration of `run` in seconds: at least three calls, about `seconds`."""

    def once() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    return sampled(once, seconds)


def sampled(once: Callable[[], float], seconds: float) -> float:
    """Typical undisturbed result of `once`: at least three calls, for about `seconds`."""
    once()  # the first call pays for caches and allocations
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        samples.append(once())
    return undisturbed(samples)


def time_gemms(
    shapes: Iterable[tuple[int, int]], num_layers: int, grid: Grid, kind: torch.dtype, name: str
) -> Iterable[dict[str, Any]]:
    """Products [m, k] x [k, n]; `name` is the dtype as the catalog spells it."""
    arithmetic = Arithmetic(kind, "cpu")
    linear = arithmetic.linear
    for n, k in shapes:
        # As many weights in turn as there are layers: caches help as much as in a pass, not more.
        copies = max(1, min(num_layers, MAX_WEIGHT_BYTES // (n * k * kind.itemsize)))
        weights = [arithmetic.pack(torch.randn(n, k).to(kind)) for _ in range(copies)]
        for m in grid.tokens:
            x = torch.randn(m, k).to(kind)

            def run(x: torch.Tensor = x, weights: list[torch.Tensor] = weights) -> None:
                for weight in weights:
                    linear(x, weight)

            seconds = timed(run, grid.seconds) / copies
            yield {"m": m, "n": n, "k": k, "dtype": name, "seconds": seconds}


def _attention(
    config: ModelConfig,
    model_layers: Sequence[Layer],
    kind: torch.dtype,
    page_tokens: int,
    starts: IntArray,
    lengths: IntArray,
    seconds: float,
) -> float:
    """Seconds of one layer's KV write and attention for these segments, all of the same kind."""
    heads = check_profilable(config)
    pages = int((-(-(starts + lengths) // page_tokens)).sum())
    page_bytes = config.kv_page_elements(page_tokens) * kind.itemsize // config.num_layers
    # As many layers in turn as in a pass, as with the weights of products.
    layers = max(1, min(config.num_layers, MAX_KV_BYTES // (pages * page_bytes)))
    layout = replace(config.kv_layout, layers=layers)
    arena = KvArena("profile", pages, layout, page_tokens=page_tokens, dtype=kind)
    for slot, end in enumerate(starts + lengths):
        arena.reserve(slot, int(end))
    count = int(lengths.sum())
    rows = PassRows(
        slots=np.arange(len(starts)),
        starts=starts,
        lengths=lengths,
        num_decodes=len(starts) if lengths.max() == 1 else 0,
        token_ids=np.zeros(count, dtype=np.int64),
        wanted=np.zeros(0, dtype=np.int64),
    )
    slots, positions = rows.flat()
    columns, within = np.divmod(positions, page_tokens)
    places = arena.tensor(arena.tables.pages[slots, columns]), arena.tensor(within)
    backend = choose_backend(config, kind, exact=False, device="cpu")
    prepared = backend.prepare(arena, rows)
    q = torch.randn(count, heads.num_heads, heads.head_dim).to(kind)
    kv = torch.randn(count, heads.num_kv_heads, heads.head_dim).to(kind)
    how = [_how(layer) for layer in model_layers[:layers]]

    def once() -> float:
        spent = 0.0
        for layer in range(layers):
            # As in a pass, where the weights of a layer push its KV out of the caches.
            _touch(model_layers[layer])
            begin = time.perf_counter()
            arena.write(layer, *places, kv, kv)
            backend.run(arena, layer, q, prepared, how[layer])
            spent += time.perf_counter() - begin
        return spent

    return sampled(once, seconds) / layers


def _touch(layer: Layer) -> None:
    for weight in (*layer.attention.matrices(), layer.mlp.gate_up, layer.mlp.down):
        weight.sum()


def _how(layer: Layer) -> Heads:
    assert isinstance(layer.attention, GroupedAttention)
    return layer.attention.heads


def check_profilable(config: ModelConfig) -> AttentionConfig:
    """The heads of a model; UserError for one whose attention no profile describes."""
    if isinstance(config.attention, LatentConfig):
        raise UserError(
            f"{config.family} cannot be profiled yet: latent attention is not measured",
            remedy="profile a model with grouped-query attention",
        )
    return config.attention


def _head_sizes(config: ModelConfig) -> dict[str, Any]:
    heads = check_profilable(config)
    return {
        "heads": heads.num_heads,
        "kv_heads": heads.num_kv_heads,
        "head_dim": heads.head_dim,
    }


def time_decode_attention(
    config: ModelConfig,
    layers: Sequence[Layer],
    grid: Grid,
    kind: torch.dtype,
    page_tokens: int,
) -> Iterable[dict[str, Any]]:
    """One layer: KV write and attention of `rows` rows that read `context` tokens each."""
    for rows in grid.rows:
        for context in grid.contexts:
            if context <= config.max_context and rows * context <= grid.max_kv_tokens:
                segments = np.full(rows, context - 1), np.ones(rows, dtype=np.int64)
                seconds = _attention(config, layers, kind, page_tokens, *segments, grid.seconds)
                point = {"rows": rows, "context": context, "seconds": seconds}
                yield _head_sizes(config) | point


def time_prefill_attention(
    config: ModelConfig,
    layers: Sequence[Layer],
    grid: Grid,
    kind: torch.dtype,
    page_tokens: int,
) -> Iterable[dict[str, Any]]:
    """One layer: KV write and attention of one prompt chunk behind `start` earlier tokens."""
    for chunk in grid.chunks:
        for start in grid.starts:
            if start + chunk <= config.max_context:
                segment = np.array([start]), np.array([chunk])
                seconds = _attention(config, layers, kind, page_tokens, *segment, grid.seconds)
                yield _head_sizes(config) | {"chunk": chunk, "start": start, "seconds": seconds}


def time_experts(
    config: ModelConfig, layers: Sequence[Layer], grid: Grid, kind: torch.dtype
) -> Iterable[dict[str, Any]]:
    """A sparse MLP as a whole: router, grouping and uneven experts are part of its cost.

    Layers in turn, as with the weights of products. Nothing for a dense model.
    """
    sparse = [layer.mlp for layer in layers if isinstance(layer.mlp, SparseMlp)]
    if config.moe is None or not sparse:
        return
    shape = {
        "hidden": config.hidden_size,
        "width": config.moe.width,
        "num_experts": config.moe.num_experts,
        "top_k": config.moe.experts_per_token,
    }
    for m in grid.tokens:
        x = torch.randn(m, config.hidden_size).to(kind)

        def run(x: torch.Tensor = x) -> None:
            for mlp in sparse:
                mlp(x)

        yield shape | {"m": m, "seconds": timed(run, grid.seconds) / len(sparse)}


def time_copies(
    config: ModelConfig, grid: Grid, kind: torch.dtype, page_tokens: int
) -> Iterable[dict[str, Any]]:
    most = max(grid.pages)
    tiers = {}
    for name in ("hbm", "host"):
        tiers[name] = KvArena(name, most, config.kv_layout, page_tokens=page_tokens, dtype=kind)
        tiers[name].reserve(0, most * page_tokens)
    for source, target in (("hbm", "host"), ("host", "hbm")):
        for pages in grid.pages:

            def run(a: KvArena = tiers[source], b: KvArena = tiers[target], n: int = pages) -> None:
                move_pages(a.storage, a.tables.pages[0, :n], b.storage, b.tables.pages[0, :n])

            yield {
                "from": source,
                "to": target,
                "bytes": pages * tiers[source].page_bytes,
                "seconds": timed(run, grid.seconds),
            }


def fit_copies(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Bytes per second and latency of the link between the tiers, both directions together."""
    size = np.array([point["bytes"] for point in points], dtype=np.float64)
    seconds = np.array([point["seconds"] for point in points])
    columns = np.stack((size, np.ones_like(size)), 1) / seconds[:, None]
    (per_byte, latency), *_ = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)
    if per_byte <= 0 or latency < 0:  # noise: the rate of the largest copies, and no latency
        largest = size == size.max()
        per_byte, latency = float((seconds[largest] / size[largest]).mean()), 0.0
    return {"host_bytes_per_s": float(1 / per_byte), "host_latency_s": float(latency)}
