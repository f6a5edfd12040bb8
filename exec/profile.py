"""The profile document of this machine, as `batchgen profile` writes it. Times nothing itself.

Points come from `profile_operators` and `profile_passes`; the form is that of
`batchgen.cost.profile_schema`.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import batchgen
from batchgen.cost.overheads import errors_by_kind, fit_overheads
from batchgen.cost.profile import ProfiledCost, gemm_shapes, parse_profile
from batchgen.cost.profile_schema import PROFILE_KIND, PROFILE_SCHEMA
from batchgen.exec.calibration import Calibration
from batchgen.exec.init import init_model
from batchgen.exec.profile_operators import (
    Grid,
    check_profilable,
    fit_copies,
    time_copies,
    time_decode_attention,
    time_experts,
    time_gemms,
    time_prefill_attention,
)
from batchgen.exec.profile_passes import random_prompts, read_prompts, run_passes
from batchgen.exec.transformer import DTYPES
from batchgen.exec.worker import Worker
from batchgen.layout import Layout
from batchgen.model import ModelSpec, load_model

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
    dtype: str = "float32",
    page_tokens: int = 64,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The profile document of this machine for one model (a generic small one if None).

    `prompts`: rows for `batchgen exec` whose passes are measured, random ones if None. `say` gets a
    line of progress per table. Minutes on a large model; `grid=QUICK` takes seconds.
    """
    grid = Grid() if grid is None else grid
    with tempfile.TemporaryDirectory() as folder:
        directory = (
            init_model(Path(folder) / "m", *GENERIC_MODEL) if model_dir is None else model_dir
        )
        worker = Worker(
            directory,
            page_tokens=page_tokens,
            hbm_pages=0,
            host_pages=0,
            dtype=dtype,
            threads=threads,
        )
        spec = load_model(directory)
    check_profilable(worker.config)
    config, layers, kind = worker.config, worker.model.layers, DTYPES[dtype]
    shapes = set(gemm_shapes(spec).values())
    if model_dir is None:
        shapes |= {(n, k) for n in GENERIC_SIZES for k in GENERIC_SIZES}
    document: dict[str, Any] = {
        "schema": PROFILE_SCHEMA,
        "kind": PROFILE_KIND,
        "machine": _machine(dtype) | {"kernels": worker.kernels},
        "model": {"name": None if model_dir is None else spec.name, "page_tokens": page_tokens},
    }
    with torch.inference_mode():
        say(f"products: {len(shapes)} shapes x {len(grid.tokens)} sizes")
        document["gemm"] = list(
            time_gemms(sorted(shapes), config.num_layers, grid, kind, CATALOG_DTYPES[dtype])
        )
        say("attention of decodes and of prompts")
        document["decode_attention"] = list(
            time_decode_attention(config, layers, grid, kind, page_tokens)
        )
        document["prefill_attention"] = list(
            time_prefill_attention(config, layers, grid, kind, page_tokens)
        )
        document["experts"] = list(time_experts(config, layers, grid, kind))
        say("copies between the tiers")
        document["copies"] = fit_copies(list(time_copies(config, grid, kind, page_tokens)))
    say("whole passes")
    rows = (
        random_prompts(worker, grid)
        if prompts is None
        else read_prompts(prompts, directory, worker, grid)
    )
    calibration = Calibration(worker)
    calibration.look_long()
    passes = run_passes(worker, rows, grid, calibration.look)
    calibration.look_long()
    # Beyond the schema: what a small job took meanwhile; so a prediction knows a slower machine.
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


def _cost(spec: ModelSpec, document: dict[str, Any]) -> ProfiledCost:
    """The cost model that a reader would make of the document, as far as it is written."""
    return ProfiledCost(spec, parse_profile(document), Layout())


def _machine(dtype: str) -> dict[str, Any]:
    return {
        "device": "cpu",
        "name": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "batchgen": batchgen.__version__,
    }


def _processor() -> str:
    """The processor's name from /proc/cpuinfo, or what the platform module knows."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
