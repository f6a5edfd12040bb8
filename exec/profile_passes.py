"""Time whole passes and say what they cost beyond their operators. Measures no operator itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from batchgen.exec.config import ModelConfig
from batchgen.exec.profile_operators import Grid
from batchgen.exec.worker import Worker

NEVER: frozenset[int] = frozenset()


def time_passes(loaded: Worker, grid: Grid, dtype: str) -> list[dict[str, Any]]:
    """Real passes: decode of `rows` at a context, and one whole prompt of `chunk` tokens.

    `seconds_without_layers` is the same pass through a model cut down to embedding and head.
    """
    passes = []
    context = max(c for c in grid.contexts if c <= min(256, loaded.config.max_context // 2))
    for rows in grid.rows:
        if rows * (context + 64) <= grid.max_kv_tokens:
            seconds = _timed_decode(loaded, rows, context, grid.seconds)
            passes.append({"kind": "decode", "rows": rows, "context": context, **seconds})
    for chunk in grid.chunks:
        if chunk < loaded.config.max_context:
            seconds = _timed_prompt(loaded, chunk, grid.seconds)
            passes.append({"kind": "prefill", "chunk": chunk, "start": 0, **seconds})
    return [item | {"dtype": dtype} for item in passes]


def _timed_decode(worker: Worker, rows: int, context: int, seconds: float) -> dict[str, float]:
    most = 24  # passes; the context stays within 10 percent of the one that is named
    need = rows * -(-(context + most + 1) // worker.page_tokens)
    worker.resize(hbm_pages=need, host_pages=0)
    for row in range(rows):
        worker.add_row(row, [row % 256] * (context - 1), max_output=1 << 30, stop_ids=NEVER)
    worker.run_pass([], [(row, 0, context - 1, True) for row in range(rows)])
    result = _both(worker, lambda: worker.run_pass(range(rows), []).duration_s, most // 2, seconds)
    for row in range(rows):
        worker.forget_row(row)
    return result


def _timed_prompt(worker: Worker, chunk: int, seconds: float) -> dict[str, float]:
    worker.resize(hbm_pages=-(-chunk // worker.page_tokens), host_pages=0)

    def run() -> float:
        worker.add_row(0, [7] * chunk, max_output=1 << 30, stop_ids=NEVER)
        duration_s = worker.run_pass([], [(0, 0, chunk, True)]).duration_s
        worker.forget_row(0)
        return duration_s

    return _both(worker, run, 12, seconds)


def _both(worker: Worker, run: Callable[[], float], most: int, seconds: float) -> dict[str, float]:
    """Median pass with all layers and with none, at most `most` passes each."""
    layers = worker.model.layers
    medians = {}
    try:
        for name, kept in (("seconds", layers), ("seconds_without_layers", [])):
            worker.model.layers = kept
            run()
            samples: list[float] = []
            while len(samples) < 3 or (len(samples) < most - 1 and sum(samples) < 4 * seconds):
                samples.append(run())
            medians[name] = statistics.median(samples)
    finally:
        worker.model.layers = layers
    return medians


def overheads(
    config: ModelConfig,
    gemm: Sequence[dict[str, Any]],
    decode: Sequence[dict[str, Any]],
    prefill: Sequence[dict[str, Any]],
    experts: Sequence[dict[str, Any]],
    passes: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """What measured passes cost beyond their measured parts, per layer and per step, by tokens.

    layer_s = (pass - pass without layers) / layers - products - attention (norms, rotary angles,
    activations, launches); step_s = pass without layers - head. Never below zero.
    """
    hidden, layers = config.hidden_size, config.num_layers
    sparse = len(config.moe.sparse_layers) if config.moe is not None else 0
    attention_shapes = [(config.q_size + 2 * config.kv_size, hidden), (hidden, config.q_size)]
    mlp_shapes = [(2 * config.intermediate_size, hidden), (hidden, config.intermediate_size)]

    def product(shape: tuple[int, int], m: int) -> float:
        points = [(p["m"], p["seconds"]) for p in gemm if (p["n"], p["k"]) == shape]
        return _between(points, m)

    result = []
    for item in passes:
        if item["kind"] == "decode":
            tokens = samples = item["rows"]
            points = [(p["context"], p["seconds"]) for p in decode if p["rows"] == tokens]
            attended = _between(points, item["context"])
        else:
            tokens, samples = item["chunk"], 1
            attended = next(
                p["seconds"] for p in prefill if (p["chunk"], p["start"]) == (tokens, 0)
            )
        parts = layers * (attended + sum(product(shape, tokens) for shape in attention_shapes))
        parts += (layers - sparse) * sum(
            product(shape, tokens) for shape in mlp_shapes if sparse < layers
        )
        if sparse:
            parts += sparse * _between([(p["m"], p["seconds"]) for p in experts], tokens)
        in_layers = item["seconds"] - item["seconds_without_layers"]
        head = product((config.vocab_size, hidden), samples)
        result.append(
            {
                "kind": item["kind"],
                "tokens": tokens,
                "layer_s": max(0.0, (in_layers - parts) / layers),
                "step_s": max(0.0, item["seconds_without_layers"] - head),
            }
        )
    return result


def _between(points: Sequence[tuple[int, float]], x: float) -> float:
    """Linear between measured points, proportional beyond the last, constant before the first."""
    xs, ys = zip(*sorted(points), strict=True)
    if x > xs[-1]:
        return float(ys[-1] * x / xs[-1])
    return float(np.interp(x, xs, ys))
