"""Time the operators of a pass one by one: products, attention, experts, copies between tiers.

Runs the executor's own code (`Arithmetic`, the backend of attention, `SparseMlp`, `move_pages`) on
the CPU or a GPU, not whole passes. Tables are lists of measured points in seconds, in the form that
`batchgen.cost.profile_schema` defines. A point that a GPU has no memory for is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from batchgen.errors import UserError
from batchgen.exec.arena import KvArena
from batchgen.exec.arithmetic import Arithmetic
from batchgen.exec.attention import Heads, choose_backend
from batchgen.exec.batch import IntArray, PassRows
from batchgen.exec.config import AttentionConfig, LatentConfig, ModelConfig
from batchgen.exec.gpu.pinned import pinned_zeros
from batchgen.exec.layers import GroupedAttention, Layer
from batchgen.exec.mlp import SparseMlp
from batchgen.exec.page_moves import move_pages
from batchgen.exec.profile_grid import Grid
from batchgen.exec.stopwatch import Stopwatch

MAX_WEIGHT_BYTES = MAX_KV_BYTES = 256 << 20
# What is read between two uses of the same weights or KV, at least, so that no GPU of today has
# them in its caches (50 MB in an H100): a model that is larger leaves nothing there either.
COLD_BYTES = 192 << 20
MOST_LAYERS = 4  # that attention on a GPU is timed on, each from a cold cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and how operators are timed: the device is that of the `watch`; `kind` is the dtype of
    weights and KV."""

    watch: Stopwatch
    grid: Grid
    kind: torch.dtype
    page_tokens: int

    # What is read between laps on a GPU; None on the CPU, where a model's own weights are.
    cold: torch.Tensor | None = None

    @classmethod
    def of(cls, watch: Stopwatch, grid: Grid, kind: torch.dtype, page_tokens: int) -> Bench:
        """With memory to read between laps, where the device wants it."""
        cold = torch.zeros(COLD_BYTES // 4, device=watch.device) if watch.device != "cpu" else None
        return cls(watch=watch, grid=grid, kind=kind, page_tokens=page_tokens, cold=cold)

    @property
    def device(self) -> str:
        return self.watch.device

    def cool(self, layer: Layer) -> None:
        """Between laps: as in a pass, where the weights of a layer push its KV out of the caches.
        On a GPU always more than they hold, be the model ever so small: a stand-in for larger."""
        for weight in _weights(layer) if self.cold is None else (self.cold,):
            weight.sum()

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device).to(self.kind)

    def timed(self, run: Callable[[], object]) -> float:
        return self.watch.timed(run, self.grid.seconds)


def _if_it_fits(measured: Callable[[], float]) -> float | None:
    """None for what the GPU has no memory for."""
    try:
        return measured()
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()
    return None


def _in_turn(bench: Bench, num_layers: int, layer_bytes: int, most_bytes: int) -> int:
    """How many copies of `layer_bytes` are used in turn.

    On the CPU as many as there are layers: caches help as much as in a pass, not more. On a GPU as
    many as keep them out of its caches, be the model ever so small: it is a stand-in for larger.
    """
    if bench.device == "cuda":
        num_layers = -(-COLD_BYTES // layer_bytes)
    return max(1, min(num_layers, most_bytes // layer_bytes))


def time_gemms(
    shapes: Iterable[tuple[int, int]], num_layers: int, bench: Bench, name: str
) -> Iterable[dict[str, Any]]:
    """Products [m, k] x [k, n]; `name` is the dtype as the catalog spells it."""
    arithmetic = Arithmetic(bench.kind, bench.device)
    linear = arithmetic.linear
    for n, k in shapes:
        copies = _in_turn(bench, num_layers, n * k * bench.kind.itemsize, MAX_WEIGHT_BYTES)
        weights = [arithmetic.pack(bench.random(n, k)) for _ in range(copies)]
        for m in bench.grid.tokens:

            def measured(
                m: int = m, k: int = k, weights: Sequence[torch.Tensor] = weights
            ) -> float:
                x = bench.random(m, k)

                def run() -> None:
                    for weight in weights:
                        linear(x, weight)

                return bench.timed(run) / len(weights)

            seconds = _if_it_fits(measured)
            if seconds is not None:
                yield {"m": m, "n": n, "k": k, "dtype": name, "seconds": seconds}


def _attention(
    config: ModelConfig,
    model_layers: Sequence[Layer],
    bench: Bench,
    starts: IntArray,
    lengths: IntArray,
) -> float:
    """Seconds of one layer's KV write and attention for these segments, all of the same kind."""
    heads, page_tokens = check_profilable(config), bench.page_tokens
    pages = int((-(-(starts + lengths) // page_tokens)).sum())
    page_bytes = config.kv_page_elements(page_tokens) * bench.kind.itemsize // config.num_layers
    # As many layers in turn as in a pass, as with the weights of products, which are read between.
    layers = min(config.num_layers, max(1, MAX_KV_BYTES // (pages * page_bytes)))
    if bench.cold is not None:
        layers = min(layers, MOST_LAYERS)
    layout = replace(config.kv_layout, layers=layers)
    arena = KvArena(
        "profile",
        pages,
        layout,
        page_tokens=page_tokens,
        dtype=bench.kind,
        device=bench.device,
    )
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
    backend = choose_backend(config, bench.kind, exact=False, device=bench.device)
    prepared = backend.prepare(arena, rows)
    q = bench.random(count, heads.num_heads, heads.head_dim)
    kv = bench.random(count, heads.num_kv_heads, heads.head_dim)
    how = [_how(layer) for layer in model_layers[:layers]]

    def once() -> None:
        for layer in range(layers):
            bench.cool(model_layers[layer])

            def run(layer: int = layer) -> None:
                arena.write(layer, *places, kv, kv)
                backend.run(arena, layer, q, prepared, how[layer])

            bench.watch.lap(run)

    return bench.watch.sampled(once, bench.grid.seconds) / layers


def _weights(layer: Layer) -> tuple[torch.Tensor, ...]:
    return *layer.attention.matrices(), layer.mlp.gate_up, layer.mlp.down


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
    config: ModelConfig, layers: Sequence[Layer], bench: Bench
) -> Iterable[dict[str, Any]]:
    """One layer: KV write and attention of `rows` rows that read `context` tokens each."""
    for rows in bench.grid.rows:
        for context in bench.grid.contexts:
            if context <= config.max_context and rows * context <= bench.grid.max_kv_tokens:
                segments = np.full(rows, context - 1), np.ones(rows, dtype=np.int64)
                seconds = _if_it_fits(partial(_attention, config, layers, bench, *segments))
                if seconds is not None:
                    point = {"rows": rows, "context": context, "seconds": seconds}
                    yield _head_sizes(config) | point


def time_prefill_attention(
    config: ModelConfig, layers: Sequence[Layer], bench: Bench
) -> Iterable[dict[str, Any]]:
    """One layer: KV write and attention of one prompt chunk behind `start` earlier tokens."""
    for chunk in bench.grid.chunks:
        for start in bench.grid.starts:
            if start + chunk <= config.max_context:
                segment = np.array([start]), np.array([chunk])
                seconds = _if_it_fits(partial(_attention, config, layers, bench, *segment))
                if seconds is not None:
                    yield _head_sizes(config) | {"chunk": chunk, "start": start, "seconds": seconds}


def time_experts(
    config: ModelConfig, layers: Sequence[Layer], bench: Bench
) -> Iterable[dict[str, Any]]:
    """A sparse MLP as a whole: router, grouping and uneven experts are part of its cost.

    Layers in turn, as with the weights of products. Nothing for a dense model.
    """
    sparse = [layer for layer in layers if isinstance(layer.mlp, SparseMlp)]
    if config.moe is None or not sparse:
        return
    shape = {
        "hidden": config.hidden_size,
        "width": config.moe.width,
        "num_experts": config.moe.num_experts,
        "top_k": config.moe.experts_per_token,
    }
    for m in bench.grid.tokens:

        def measured(m: int = m) -> float:
            x = bench.random(m, config.hidden_size)

            def once() -> None:
                for layer in sparse:
                    if bench.cold is not None:
                        bench.cool(layer)
                    bench.watch.lap(partial(layer.mlp, x))

            return bench.watch.sampled(once, bench.grid.seconds) / len(sparse)

        seconds = _if_it_fits(measured)
        if seconds is not None:
            yield shape | {"m": m, "seconds": seconds}


def time_copies(config: ModelConfig, bench: Bench) -> Iterable[dict[str, Any]]:
    """Pages between the tiers; by the host's clock, since a copy is done when `move_pages` is."""
    most, is_gpu = max(bench.grid.pages), bench.device == "cuda"
    tiers = {}
    for name in ("hbm", "host"):
        tiers[name] = KvArena(
            name,
            most,
            config.kv_layout,
            page_tokens=bench.page_tokens,
            dtype=bench.kind,
            device=bench.device if name == "hbm" else "cpu",
            zeros=pinned_zeros if is_gpu and name == "host" else None,
        )
        tiers[name].reserve(0, most * bench.page_tokens)
    clock = Stopwatch()
    for source, target in (("hbm", "host"), ("host", "hbm")):
        for pages in bench.grid.pages:

            def run(a: KvArena = tiers[source], b: KvArena = tiers[target], n: int = pages) -> None:
                move_pages(a.storage, a.tables.pages[0, :n], b.storage, b.tables.pages[0, :n])

            yield {
                "from": source,
                "to": target,
                "bytes": pages * tiers[source].page_bytes,
                "seconds": clock.timed(run, bench.grid.seconds),
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
