"""How large the arenas of a job are, and the limits of its passes: the plan of one device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from batchgen.errors import UserError
from batchgen.exec.config import ModelConfig, load_config
from batchgen.exec.free_memory import free_memory_bytes
from batchgen.exec.job import ExecJob
from batchgen.exec.weights import expected_shapes
from batchgen.job.rows import JobRow
from batchgen.memory.pool import BOUNDARIES_AHEAD, pages_ahead
from batchgen.plan import EngineSpec, Plan
from batchgen.planning import PlanOptions
from batchgen.policy.presets import Preset

# A pass of a CPU saturates far below a GPU's token budget; measured by `batchgen profile`.
CPU_TOKEN_BUDGET = 2048
CPU_MAX_NUM_SEQS = 256
# Decode passes between two looks at who waits. A CPU runs few rows, so a place that stands empty
# counts for more than the decision: 200 prompts of the small model took 1.42 s with 64 and 1.25 s
# with 16 (`batchgen exec`, 160 pages of 64 tokens, --set plan.boundary=N).
CPU_BOUNDARY = 16
# Part of the free memory that the KV arenas of a CPU run may take when no size is given.
MEMORY_FRACTION = 0.25
# Rows whose KV the host holds when no size is given, for each that can run: a stock that decoding
# lives on while the device prefills the next.
HOST_ROWS_PER_SEAT = 4


def make_plan(
    job: ExecJob,
    options: PlanOptions,
    preset: Preset,
    config: ModelConfig,
    rows: Sequence[JobRow],
    *,
    page_tokens: int,
    uses_host: bool = True,
    shared_pages: int = 0,
) -> Plan:
    """The plan. Arenas hold what can run at once, however long the job is; `shared_pages` come on
    top of that. `uses_host`: the policy has a use for a host tier. Raises UserError for sizes that
    do not fit."""
    boundary = options.boundary or (CPU_BOUNDARY if job.device == "cpu" else preset.boundary)
    seats = options.max_num_seqs or preset.max_num_seqs or CPU_MAX_NUM_SEQS
    longest = [len(row.prompt_ids) + row.max_output for row in rows]
    if job.body is not None:  # nobody knows how far a body extends its row
        longest = [config.max_context] * len(rows)
    page_bytes = config.kv_page_elements(page_tokens) * itemsize(job)
    free = free_memory_bytes()
    room = max(2, int(free * MEMORY_FRACTION) // page_bytes)
    hbm, host = job.hbm_pages, job.host_pages
    if hbm is None:
        hbm = min(room, shared_pages + pages_wanted(longest, page_tokens, boundary, seats))
    if host is None:
        stock = seats * HOST_ROWS_PER_SEAT
        wanted = pages_wanted(longest, page_tokens, boundary, stock) if uses_host else 0
        host = min(room, wanted)
    if not options.host:
        host = 0
    if hbm < 2 or host < 0:
        raise UserError(f"{hbm} hbm and {host} host pages", remedy="give at least 2 and 0")
    if (hbm + host) * page_bytes > free:
        raise UserError(
            f"{hbm} hbm and {host} host pages of {page_bytes} bytes do not fit the "
            f"{free / 1e9:.1f} GB of memory that are free",
            remedy="lower --hbm-pages and --host-pages",
            code="capacity",
        )
    return Plan(
        page_tokens=page_tokens,
        boundary=boundary,
        engines=(EngineSpec(engine=0, node=0, hbm_pages=hbm, host_pages=host),),
        token_budget=options.token_budget or preset.token_budget or CPU_TOKEN_BUDGET,
        max_num_seqs=seats,
        max_context=config.max_context,
        b_attn=options.b_attn,
        b_moe=options.b_moe,
        depth=options.depth,
    )


def pages_wanted(
    longest_tokens: Sequence[int], page_tokens: int, boundary: int, rows: int | None = None
) -> int:
    """Pages with which none of the `rows` longest rows (None: of all) ever waits for memory: its
    own and those that lazy admission keeps free for it."""
    ahead = pages_ahead(boundary, BOUNDARIES_AHEAD, page_tokens)
    pages = -(-np.sort(np.asarray(longest_tokens, dtype=np.int64))[::-1] // page_tokens)
    return max(2, int((pages[:rows] + ahead).sum()))


def itemsize(job: ExecJob) -> int:
    """Bytes of a weight and of a KV element."""
    return 4 if job.dtype == "float32" else 2


def weight_bytes(job: ExecJob, config: ModelConfig) -> int:
    """Bytes of the model's weights in the dtype of the job, from its config alone."""
    return sum(map(math.prod, expected_shapes(config).values())) * itemsize(job)


def check_weights_fit(job: ExecJob, folder: Path) -> None:
    """Refuse a model that memory cannot hold, before the system kills the process for it."""
    need, free = weight_bytes(job, load_config(folder)), free_memory_bytes()
    if need > free:
        raise UserError(
            f"model {job.model} needs {need / 1e9:.1f} GB in {job.dtype}, "
            f"{free / 1e9:.1f} GB of memory are free",
            remedy="choose a smaller model or --dtype bfloat16",
            code="capacity",
        )
