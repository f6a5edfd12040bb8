"""A short look at this machine for one model: a profile of few points, kept for the next time. It
predicts nothing."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import batchgen
from batchgen.cost.profile import load_profile
from batchgen.errors import UserError
from batchgen.exec.ceilings import Ceilings, measure_ceilings
from batchgen.exec.config import load_config
from batchgen.exec.job import ExecJob
from batchgen.exec.machine_facts import processor_flags, processor_name
from batchgen.exec.native_build import CannotBuildError, cache_folder
from batchgen.exec.profile import measure
from batchgen.exec.profile_grid import LOOK
from batchgen.exec.sizing import weight_bytes
from batchgen.exec.transformer import DTYPES
from batchgen.paths import write_whole

MOST_WEIGHT_BYTES = 1_000_000_000
"""A larger model is not loaded for it: that, and its passes, take more than seconds."""
SMALL_TOKENS, SMALL_BYTES = 4096, 10_000_000_000
"""A job of fewer tokens that reads fewer weights takes a second or two."""
FRESH_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """`profile`: the document; `took_s` of this look, `age_s` of one that was kept (else 0)."""

    profile: dict[str, Any]
    took_s: float
    age_s: float = 0.0

    @property
    def pass_error(self) -> float:
        """The largest median error of the passes that it measured, by kind, in parts of one."""
        return max(float(one["median_error"]) for one in self.profile["fit"].values())


def look_at_machine(
    job: ExecJob,
    folder: Path,
    page_tokens: int,
    say: Callable[[str], None],
    *,
    tokens: int,
    longest: int,
) -> Look | None:
    """The look that is kept of the last day, else a new one: it loads the model in `folder`. None
    for a device or a model for which it would take more than seconds. `tokens`, `longest`: of all
    rows and of the longest answer. Raises UserError for a model that cannot be profiled, and, with
    code "small", for a job that is over before a look is."""
    need = weight_bytes(job, load_config(folder))
    if job.device != "cpu" or need > MOST_WEIGHT_BYTES:
        return None
    try:
        path = cache_folder() / f"look-{_key(job, folder, page_tokens)}.json"
    except (CannotBuildError, OSError):  # nowhere to keep it
        path = None
    if path is not None and (kept := _kept(path)) is not None:
        return kept
    if tokens < SMALL_TOKENS and longest * need < SMALL_BYTES:
        raise UserError(
            "so small a job is done before this machine is measured",
            remedy="run it, or give --profile or --gpu",
            code="small",
        )
    say("measuring this machine with the model, some seconds")
    began = time.perf_counter()
    document = measure(
        folder, grid=LOOK, dtype=job.dtype, page_tokens=page_tokens, threads=job.threads
    )
    if path is not None:
        try:
            write_whole(path, json.dumps(document, allow_nan=False).encode())
        except OSError as error:
            say(f"note: what was measured cannot be kept in {path}: {error.strerror}")
    return Look(profile=document, took_s=time.perf_counter() - began)


def ceilings_of(job: ExecJob) -> Ceilings:
    """What the device does at most, in the dtype of a job."""
    return measure_ceilings(DTYPES[job.dtype], job.device)


def _kept(path: Path) -> Look | None:
    try:
        age_s = time.time() - path.stat().st_mtime
        if not 0 <= age_s < FRESH_S:
            return None
        load_profile(path)
        document = json.loads(path.read_text(encoding="utf-8"))
        return Look(profile=document, took_s=0.0, age_s=age_s) if document["fit"] else None
    except (OSError, UserError, ValueError, KeyError):
        return None


def _key(job: ExecJob, folder: Path, page_tokens: int) -> str:
    """Of all that decides times: shapes, not weights."""
    facts = (
        (folder / "config.json").read_bytes(),
        job.dtype,
        page_tokens,
        job.threads or torch.get_num_threads(),
        processor_name(),
        processor_flags(),
        os.cpu_count(),
        batchgen.__version__,
        torch.__version__,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
