"""The record of a run of the executor: its columns and its circumstances, as the simulator has
them."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import batchgen
from batchgen.cost.api import FloatArray, PassLoad
from batchgen.cost.work import moved_bytes, useful_flops
from batchgen.errors import UserError
from batchgen.exec.ceilings import Ceilings, measure_ceilings
from batchgen.exec.compiled import why_not
from batchgen.exec.drive import Ran
from batchgen.exec.driver import Driver
from batchgen.exec.free_memory import peak_resident_bytes
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import Prepared
from batchgen.exec.sizing import itemsize, weight_bytes
from batchgen.exec.transformer import DTYPES
from batchgen.layout import Layout
from batchgen.logbook import DecisionLog
from batchgen.model import load_model
from batchgen.paths import shown_path
from batchgen.report.record import RunRecord
from batchgen.sequence import Status

SPEC_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def build_record(prepared: Prepared, ran: Ran, wall_s: float, log: DecisionLog | None) -> RunRecord:
    """The run as columns, the same as the simulator's."""
    job, plan, driver = prepared.job, prepared.plan, ran.driver
    steps: dict[str, Any] = {
        name: np.array(values, dtype=np.int64) for name, values in driver.record.steps.items()
    }
    steps |= _work(prepared, driver)
    memory = _memory(prepared)  # before the ceilings, which take some
    ceilings = _ceilings(job)
    config = _circumstances(prepared) | {
        "machine": asdict(ceilings),
        "memory": memory,
        "copied_bytes": {
            f"{source} to {target}": moved
            for (source, target), moved in prepared.worker.copier.moved_bytes.items()
        },
    }
    return RunRecord(
        policy=job.policy,
        backend="exec",
        model=job.model.name,
        gpu=job.device,
        layout="tp1",
        num_gpus=1,
        config=config,
        rows=_rows(prepared, driver),
        row_reasons=[ran.reasons.get(row, "") for row in range(len(prepared.table))],
        steps=steps,
        marks=[],
        engines=[
            {
                "engine": 0,
                "node": 0,
                "num_gpus": 1,
                "hbm_pages_total": plan.engines[0].hbm_pages,
                "page_tokens": plan.page_tokens,
                "peak_flops": ceilings.matmul_flops,
                "peak_bw": ceilings.memory_bytes_s,
            }
        ],
        wall_s=wall_s,
        gpu_price_per_hour=0.0,
        decisions=log.packed() if log is not None else None,
    )


def _ceilings(job: ExecJob) -> Ceilings:
    """Zeros where there is no room to measure: the answers are written all the same."""
    try:
        return measure_ceilings(DTYPES[job.dtype], job.device)
    except (RuntimeError, MemoryError):
        return Ceilings(matmul_flops=0.0, memory_bytes_s=0.0)


def _circumstances(prepared: Prepared) -> dict[str, Any]:
    """What was asked for, what ran it, and what was read."""
    job, plan = prepared.job, prepared.plan
    return {
        "job": {key: _plain(value) for key, value in asdict(job).items()},
        "plan": {
            "page_tokens": plan.page_tokens,
            "boundary": plan.boundary,
            "token_budget": plan.token_budget,
            "max_num_seqs": plan.max_num_seqs,
            "hbm_pages": plan.engines[0].hbm_pages,
            "host_pages": plan.engines[0].host_pages,
            "depth": plan.depth,
            "b_attn": plan.b_attn,
            "b_moe": plan.b_moe,
        },
        "model_folder": shown_path(prepared.folder),
        # Of what was read: the whole file, or with --limit its first input_bytes bytes.
        "input_sha256": prepared.digest.hexdigest(),
        "input_bytes": prepared.digest.num_bytes,
        "template_time": prepared.tokenizer.now.isoformat(timespec="seconds"),
        "batchgen": batchgen.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": prepared.worker.kernels,
        "kernels_remark": _kernels_remark(prepared),
        "seed": job.seed,
        # Rows of the input that could not run, by code; the record has those that could.
        "refused_rows": dict(prepared.read.refused),
        "unknown_fields": dict(prepared.read.unknown),
        # Of rows that say nothing else: the command line's, the checkpoint's, or OpenAI's.
        "sampling_defaults": asdict(prepared.sampling),
        "load_s": prepared.load_s,
    }


def _rows(prepared: Prepared, driver: Driver) -> dict[str, Any]:
    """The columns of rows; `stages` only where rows have bodies."""
    table = prepared.table
    rows = {
        "row": np.arange(len(table), dtype=np.int64),
        "prompt_tokens": table.prompt,
        "output_tokens": table.produced,
        "engine": table.engine,
        "rank": table.rank,
        "arrival_ps": np.zeros(len(table), dtype=np.int64),
        "first_token_ps": driver.record.first_token_ps,
        "end_ps": driver.record.end_ps,
        "preemptions": table.preemptions,
        "recomputed_tokens": table.recomputed,
        "adopted_tokens": table.adopted,
        "migrations": table.migrations,
        "suspensions": table.suspensions,
        "status": (table.status != Status.DONE).astype(np.int64),
    }
    return rows if prepared.body is None else rows | {"stages": table.stage + 1}


def _work(prepared: Prepared, driver: Driver) -> dict[str, FloatArray]:
    """FLOPs and bytes of each step: those of its passes by the roofline's formulas, for the dtype
    of the run. Zeros for a model that these do not know."""
    passes = np.asarray(driver.record.steps["passes"], dtype=np.int64)
    nothing = {"flops": np.zeros(len(passes)), "hbm_bytes": np.zeros(len(passes))}
    try:
        model = load_model(prepared.folder)
    except UserError:
        return nothing
    dtype = SPEC_DTYPES[prepared.job.dtype]
    model = replace(
        model, weight_dtype=dtype, expert_dtype=dtype, embedding_dtype=dtype, kv_dtype=dtype
    )
    columns = {name: np.asarray(values) for name, values in driver.record.passes.items()}
    count = len(columns["decodes"])
    load = PassLoad.zeros(1, count)
    for name in ("decodes", "context", "chunk_tokens", "chunk_pairs", "chunk_reads", "samples"):
        getattr(load, name)[0] = columns[name]
    # With lag a step is reported before its last pass: the passes are those of the steps in order.
    ends = np.minimum(np.cumsum(passes), count)
    if not count:
        return nothing
    return {
        name: np.diff(np.concatenate(([0.0], amounts.cumsum()))[np.concatenate(([0], ends))])
        for name, amounts in (
            ("flops", useful_flops(model, load)),
            ("hbm_bytes", moved_bytes(model, Layout(), load)),
        )
    }


def _memory(prepared: Prepared) -> dict[str, int]:
    """What was planned, by parts and together, and the most that the process has had."""
    engine, worker = prepared.plan.engines[0], prepared.worker
    page_bytes = worker.config.kv_page_elements(worker.page_tokens) * itemsize(prepared.job)
    parts = {
        "process_bytes": prepared.process_bytes,
        "weight_bytes": weight_bytes(prepared.job, worker.config),
        "hbm_pages_bytes": engine.hbm_pages * page_bytes,
        "host_pages_bytes": engine.host_pages * page_bytes,
        "prompt_bytes": prepared.jobs.prompts.held_bytes,
    }
    return parts | {
        "planned_bytes": sum(parts.values()),
        "peak_rss_bytes": peak_resident_bytes(),
    }


def _kernels_remark(prepared: Prepared) -> str:
    """Why nothing compiled ran on the CPU; "" if it did, and elsewhere."""
    job = prepared.job
    return "" if job.device != "cpu" else why_not(DTYPES[job.dtype])


def _plain(value: object) -> object:
    return shown_path(value) if isinstance(value, Path) else value
