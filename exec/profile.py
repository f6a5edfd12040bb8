"""The profile document of this machine, as `batchgen profile` writes it. Fits nothing.

Points come from `profile_operators` and `profile_passes`, in seconds; the reader decides how to
interpolate between them.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import batchgen
from batchgen.exec.config import ModelConfig
from batchgen.exec.init import init_model
from batchgen.exec.profile_operators import (
    Grid,
    bandwidths,
    gemm_shapes,
    time_copies,
    time_decode_attention,
    time_experts,
    time_gemms,
    time_prefill_attention,
)
from batchgen.exec.profile_passes import overheads, time_passes
from batchgen.exec.worker import DTYPES, Worker

SCHEMA = 1
GENERIC_SIZES = (256, 1024, 4096)  # n and k of products that belong to no model
GENERIC_MODEL = ("qwen3", "small")
Say = Callable[[str], None]


def measure(
    model_dir: Path | None = None,
    *,
    grid: Grid | None = None,
    dtype: str = "float32",
    page_tokens: int = 64,
    threads: int | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The profile document of this machine for one model (a generic small one if None).

    `say` gets a line of progress per table. Minutes on a large model; `grid=QUICK` takes seconds.
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
    config, kind = worker.config, DTYPES[dtype]
    shapes = gemm_shapes(config)
    if model_dir is None:
        shapes = sorted({*shapes, *((n, k) for n in GENERIC_SIZES for k in GENERIC_SIZES)})
    with torch.inference_mode():
        say(f"products: {len(shapes)} shapes x {len(grid.tokens)} sizes")
        gemm = list(time_gemms(shapes, grid, kind, dtype))
        say("decode attention")
        decode = list(time_decode_attention(config, grid, kind, page_tokens))
        say("prefill attention")
        prefill = list(time_prefill_attention(config, grid, kind, page_tokens))
        experts = []
        if config.moe is not None:
            say("experts")
            experts = list(time_experts(worker, grid, kind))
        say("copies between the tiers")
        copies = list(time_copies(config, grid, kind, page_tokens))
    say("whole passes")
    passes = time_passes(worker, grid, dtype)
    return {
        "kind": "batchgen-profile",
        "schema": SCHEMA,
        "machine": _machine(dtype),
        "model": _geometry(
            config, None if model_dir is None else Path(model_dir).name, page_tokens
        ),
        "gemm": gemm,
        "decode_attention": decode,
        "prefill_attention": prefill,
        "experts": experts,
        "copies": copies,
        "passes": passes,
        "overhead": overheads(config, gemm, decode, prefill, experts, passes),
        "copy_bytes_per_s": bandwidths(copies),
    }


def _geometry(config: ModelConfig, name: str | None, page_tokens: int) -> dict[str, Any]:
    """The sizes that the attention tables belong to."""
    return {
        "name": name,
        "family": config.family,
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "page_tokens": page_tokens,
    }


def _machine(dtype: str) -> dict[str, Any]:
    return {
        "device": "cpu",
        "processor": _processor(),
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
