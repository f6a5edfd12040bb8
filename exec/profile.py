"""The profile document of this machine, as `batchgen profile` writes it. Times nothing itself.

Points come from `profile_operators` and `profile_passes`; the form is that of
`batchgen.cost.profile_schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from batchgen.cost.overheads import errors_by_kind, fit_overheads
from batchgen.cost.profile import ProfiledCost, gemm_shapes, parse_profile
from batchgen.cost.profile_schema import PROFILE_KIND, PROFILE_SCHEMA
from batchgen.exec.calibration import Calibration
from batchgen.exec.config import load_config
from batchgen.exec.devices import check_device, usual_dtype
from batchgen.exec.init import init_model
from batchgen.exec.machine_facts import machine_facts
from batchgen.exec.prepare import worker_of
from batchgen.exec.profile_grid import Grid, grid_of
from batchgen.exec.profile_operators import (
    Bench,
    check_profilable,
    fit_copies,
    time_copies,
    time_decode_attention,
    time_experts,
    time_gemms,
    time_prefill_attention,
)
from batchgen.exec.profile_passes import random_prompts, read_prompts, run_passes
from batchgen.exec.stopwatch import stopwatch_of
from batchgen.exec.transformer import DTYPES
from batchgen.exec.worker import Worker
from batchgen.layout import Layout
from batchgen.model import ModelSpec, load_model
from batchgen.paths import aside

CATALOG_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
GENERIC_SIZES = (256, 1024, 4096)  # n and k of products that belong to no model
GENERIC_MODEL = ("qwen3", "small")
STEADY = 0.10  # a machine whose small job changes by more is not measured in peace
Say = Callable[[str], None]


def measure(
    model_dir: Path | None = None,
    *,
    prompts: Path | None = None,
    grid: Grid | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    page_tokens: int = 64,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The profile document of this machine for one model (a generic small one if None).

    `prompts`: rows for `batchgen exec` whose passes are measured, random ones if None. `device`:
    "cpu" or "cuda"; it decides the `grid` and the `dtype` if they are not given. `say` gets a line
    of progress per table. Minutes on a large model; a grid of `grid_of(..., quick=True)` takes
    seconds.
    """
    check_device(device)
    grid = grid_of(device) if grid is None else grid
    dtype = usual_dtype(device) if dtype is None else dtype
    with aside("profile") as folder:
        directory = init_model(folder / "m", *GENERIC_MODEL) if model_dir is None else model_dir
        check_profilable(load_config(directory))
        worker = worker_of(device)(
            directory,
            page_tokens=page_tokens,
            hbm_pages=0,
            host_pages=0,
            dtype=dtype,
            threads=threads,
            device=device,
        )
        spec = load_model(directory)
    watch = stopwatch_of(device)
    watch.wake()
    bench = Bench.of(watch, grid, DTYPES[dtype], page_tokens)
    shapes = set(gemm_shapes(spec).values())
    if model_dir is None:
        shapes |= {(n, k) for n in GENERIC_SIZES for k in GENERIC_SIZES}
    document: dict[str, Any] = {
        "schema": PROFILE_SCHEMA,
        "kind": PROFILE_KIND,
        "machine": machine_facts(device, dtype) | {"kernels": worker.kernels},
        "model": {"name": None if model_dir is None else spec.name, "page_tokens": page_tokens},
    }
    calibration = Calibration(worker)
    calibration.look_long()
    for name, measured in _tables(worker, bench, sorted(shapes), CATALOG_DTYPES[dtype], say):
        document[name] = measured
        calibration.look()
    say("whole passes")
    rows = (
        random_prompts(worker, grid)
        if prompts is None
        else read_prompts(prompts, directory, worker, grid)
    )
    passes = run_passes(worker, rows, grid, calibration.look_again)
    calibration.look_long()
    # What a small job took meanwhile: so a prediction knows a slower machine, and how steady it is.
    document["calibration"] = {
        "median_s": calibration.median_s,
        "least_s": min(calibration.times_s),
        "most_s": max(calibration.times_s),
        "looks": len(calibration.times_s),
    }
    if abs(calibration.drift) > STEADY:
        say(
            "the machine changed its speed while it was measured: a small job took "
            f"{calibration.drift:+.0%} of its time in the later half; repeat it on an idle machine"
        )
    document["overheads"] = asdict(fit_overheads(_cost(spec, document), passes))
    # Beyond the schema, for the reader: how well the fit fits.
    document["fit"] = errors_by_kind(_cost(spec, document), passes)
    return document


def _tables(
    worker: Worker, bench: Bench, shapes: list[tuple[int, int]], dtype_name: str, say: Say
) -> Iterator[tuple[str, Any]]:
    """The tables of operators one by one, by their names in the document."""
    config, layers = worker.config, worker.model.layers
    say(f"products: {len(shapes)} shapes x {len(bench.grid.tokens)} sizes")
    yield "gemm", _measured(time_gemms(shapes, config.num_layers, bench, dtype_name))
    say("attention of decodes and of prompts")
    yield "decode_attention", _measured(time_decode_attention(config, layers, bench))
    yield "prefill_attention", _measured(time_prefill_attention(config, layers, bench))
    yield "experts", _measured(time_experts(config, layers, bench))
    say("copies between the tiers")
    yield "copies", fit_copies(_measured(time_copies(config, bench)))


def _measured(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    with torch.inference_mode():
        return list(points)


def _cost(spec: ModelSpec, document: dict[str, Any]) -> ProfiledCost:
    """The cost model that a reader would make of the document, as far as it is written."""
    return ProfiledCost(spec, parse_profile(document), Layout())
