"""Time whole passes and find what they cost beyond their operators. Measures no operator itself.

The overheads are fitted against the cost model that will use them: its predictions from the
operator tables alone are taken from the measured passes, and what is left is explained by counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchgen.exec.profile_operators import Grid, undisturbed
from batchgen.exec.worker import Worker
from batchgen.units import to_s

NEVER: frozenset[int] = frozenset()
MAX_SAMPLES = 12  # timed passes per point; a decode's context grows by one in each


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPass:
    """Load and time of a pass; `seconds_without_layers` is embedding, head and bookkeeping.

    `context` is the sum over decoding rows of the tokens they read; `chunk_pairs` the sum over
    chunks of (start + length)^2 - start^2, here with start 0.
    """

    decodes: int
    context: int
    chunk_tokens: int
    chunk_pairs: int
    samples: int
    seconds: float
    seconds_without_layers: float


class PassCost(Protocol):
    """What the fit asks of a cost model; `batchgen.cost.profile.ProfiledCost` is one."""

    def pass_one_ps(
        self,
        decodes: int,
        context: int,
        chunk_tokens: int = 0,
        chunk_pairs: int = 0,
        chunk_reads: int = 0,
        samples: int = 0,
        checkpoint: int = 0,
    ) -> int: ...


def time_passes(worker: Worker, grid: Grid) -> list[MeasuredPass]:
    """Decodes of several batch sizes and contexts; one prompt and four at a time, by length."""
    passes = []
    limit = worker.config.max_context
    for rows in grid.rows:
        for context in (grid.contexts[0], grid.contexts[len(grid.contexts) // 2]):
            fits = context + 3 * MAX_SAMPLES <= limit and rows * context <= grid.max_kv_tokens
            if fits and context > 1:
                passes.append(_timed_decode(worker, rows, context, grid.seconds))
    passes += [
        _timed_prompts(worker, count, chunk, grid.seconds)
        for chunk in grid.chunks
        for count in (1, 4)
        if chunk < limit and count * chunk <= max(grid.chunks)
    ]
    return passes


def _timed_decode(worker: Worker, rows: int, context: int, seconds: float) -> MeasuredPass:
    pages = -(-(context + 3 * MAX_SAMPLES) // worker.page_tokens)
    worker.resize(hbm_pages=rows * pages, host_pages=0)
    numbers = range(rows)
    for row in numbers:
        worker.add_row(row, _prompt(worker, row, context - 1), max_output=1 << 30, stop_ids=NEVER)
        worker.run_pass([], [(row, 0, context - 1, True)])
    contexts: list[int] = []

    def run() -> float:
        if worker.model.layers:
            contexts.append(worker.computed_tokens(0) + 1)
        return worker.run_pass(numbers, []).duration_s

    full, bare = _both(worker, run, seconds)
    for row in numbers:
        worker.forget_row(row)
    return MeasuredPass(
        decodes=rows,
        context=rows * statistics.median_low(contexts[1:]),
        chunk_tokens=0,
        chunk_pairs=0,
        samples=rows,
        seconds=full,
        seconds_without_layers=bare,
    )


def _timed_prompts(worker: Worker, count: int, chunk: int, seconds: float) -> MeasuredPass:
    worker.resize(hbm_pages=count * -(-chunk // worker.page_tokens), host_pages=0)
    prompts = [(row, 0, chunk, True) for row in range(count)]

    def run() -> float:
        for row in range(count):
            worker.add_row(row, _prompt(worker, row, chunk), max_output=1 << 30, stop_ids=NEVER)
        duration_s = worker.run_pass([], prompts).duration_s
        for row in range(count):
            worker.forget_row(row)
        return duration_s

    full, bare = _both(worker, run, seconds)
    return MeasuredPass(
        decodes=0,
        context=0,
        chunk_tokens=count * chunk,
        chunk_pairs=count * chunk**2,
        samples=count,
        seconds=full,
        seconds_without_layers=bare,
    )


def _prompt(worker: Worker, row: int, length: int) -> list[int]:
    """Varied tokens: the same one over and over would wake the same few experts."""
    tokens = np.random.default_rng(row).integers(0, worker.config.vocab_size, length)
    return [int(token) for token in tokens]


def _both(worker: Worker, run: Callable[[], float], seconds: float) -> tuple[float, float]:
    """Undisturbed pass with all layers and with none; one unmeasured pass before each."""
    layers = worker.model.layers
    times = []
    try:
        for kept in (layers, []):
            worker.model.layers = kept
            run()
            samples: list[float] = []
            while len(samples) < 3 or (len(samples) < MAX_SAMPLES and sum(samples) < 4 * seconds):
                samples.append(run())
            times.append(undisturbed(samples))
    finally:
        worker.model.layers = layers
    return times[0], times[1]


def fit_overheads(
    cost: PassCost, num_layers: int, passes: Sequence[MeasuredPass]
) -> dict[str, float]:
    """Overheads in seconds: step_s, row_s and sample_s from passes without layers, layer_s and
    layer_token_s from the layers; `cost` is a model without overheads."""
    whole = np.array([p.seconds for p in passes])
    bare = np.array([p.seconds_without_layers for p in passes])
    operators, head = np.array([_predicted(cost, p) for p in passes]).T
    rows = np.array([float(p.decodes) for p in passes])
    samples = np.array([float(p.samples) for p in passes])
    tokens = rows + np.array([float(p.chunk_tokens) for p in passes])
    ones = np.ones(len(passes))
    step_s, row_s, sample_s = _fit(np.stack((ones, rows, samples), 1), bare - head, whole)
    per_layer = np.stack((ones, tokens), 1) * num_layers
    layer_s, layer_token_s = _fit(per_layer, whole - bare - operators, whole)
    return {
        "step_s": step_s,
        "layer_s": layer_s,
        "layer_token_s": layer_token_s,
        "row_s": row_s,
        "sample_s": sample_s,
    }


def relative_errors(cost: PassCost, passes: Sequence[MeasuredPass]) -> dict[str, Any]:
    """How far a complete cost model is from the passes it was fitted to: (predicted - measured) /
    measured."""
    errors = [sum(_predicted(cost, p)) / p.seconds - 1.0 for p in passes]
    return {
        "median_absolute": statistics.median(abs(error) for error in errors),
        "largest_absolute": max(abs(error) for error in errors),
        "passes": len(errors),
    }


def _predicted(cost: PassCost, item: MeasuredPass) -> tuple[float, float]:
    """Seconds of the layers and of the head, by the cost model."""
    load = (item.decodes, item.context, item.chunk_tokens, item.chunk_pairs, 0)
    layers = cost.pass_one_ps(*load, samples=0)
    return to_s(layers), to_s(cost.pass_one_ps(*load, samples=item.samples) - layers)


def _fit(
    columns: npt.NDArray[np.float64],
    target: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
) -> list[float]:
    """Coefficients >= 0 with the least squared error relative to `scale`; a negative one is
    dropped and the others fitted again."""
    active = list(range(columns.shape[1]))
    found = [0.0] * columns.shape[1]
    while active:
        part, *_ = np.linalg.lstsq(columns[:, active] / scale[:, None], target / scale, rcond=None)
        if (part >= 0).all():
            for index, value in zip(active, part, strict=True):
                found[index] = float(value)
            break
        active.pop(int(part.argmin()))
    return found
