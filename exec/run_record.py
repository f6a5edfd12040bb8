"""The record of a run of the executor: its columns and its circumstances, as the simulator has
them."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import batchgen
from batchgen.exec.drive import Ran
from batchgen.exec.prepare import Prepared
from batchgen.logbook import DecisionLog
from batchgen.report.record import RunRecord
from batchgen.sequence import Status


def build_record(prepared: Prepared, ran: Ran, wall_s: float, log: DecisionLog | None) -> RunRecord:
    """The run as columns, the same as the simulator's."""
    job, table, plan, driver = prepared.job, prepared.table, prepared.plan, ran.driver
    steps: dict[str, Any] = {
        name: np.array(values, dtype=np.int64) for name, values in driver.record.steps.items()
    }
    steps["flops"] = np.zeros(len(steps["q0"]))
    steps["hbm_bytes"] = np.zeros(len(steps["q0"]))
    config: dict[str, Any] = {
        "job": {key: _plain(value) for key, value in asdict(job).items()},
        "plan": {
            "page_tokens": plan.page_tokens,
            "boundary": plan.boundary,
            "token_budget": plan.token_budget,
            "max_num_seqs": plan.max_num_seqs,
            "hbm_pages": plan.engines[0].hbm_pages,
            "host_pages": plan.engines[0].host_pages,
            "depth": plan.depth,
        },
        "input_sha256": hashlib.sha256(job.input.read_bytes()).hexdigest(),
        "batchgen": batchgen.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": prepared.worker.kernels,
        "seed": job.seed,
        "load_s": prepared.load_s,
    }
    return RunRecord(
        policy=job.policy,
        backend="exec",
        model=job.model.name,
        gpu=job.device,
        layout="tp1",
        num_gpus=1,
        config=config,
        rows={
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
            "migrations": table.migrations,
            "suspensions": table.suspensions,
            "status": (table.status != Status.DONE).astype(np.int64),
        }
        | ({} if prepared.body is None else {"stages": table.stage + 1}),
        row_reasons=[ran.reasons.get(row, "") for row in range(len(table))],
        steps=steps,
        marks=[],
        engines=[
            {
                "engine": 0,
                "node": 0,
                "num_gpus": 1,
                "hbm_pages_total": plan.engines[0].hbm_pages,
                "peak_flops": 0.0,
                "peak_bw": 0.0,
            }
        ],
        wall_s=wall_s,
        gpu_price_per_hour=0.0,
        decisions=log.packed() if log is not None else None,
    )


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
