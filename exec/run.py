"""One job on one device: read rows, plan memory, drive the worker, write answers and the record."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import batchgen
from batchgen import events as ev
from batchgen.bodies import Bodies
from batchgen.bodyname import load_body
from batchgen.coroutine import BodyFactory
from batchgen.cost.api import CostModel
from batchgen.errors import UserError
from batchgen.exec.answers import Answers
from batchgen.exec.clock import Clock, ModelClock, WallClock
from batchgen.exec.compiled import why_not
from batchgen.exec.config import load_config
from batchgen.exec.driver import Driver
from batchgen.exec.hub import find_model
from batchgen.exec.textview import TextView
from batchgen.exec.tokenizer import Tokenizer
from batchgen.exec.weights import expected_shapes
from batchgen.exec.worker import Stage, Worker
from batchgen.job.jsonl import InputDigest
from batchgen.job.output import OutputWriter
from batchgen.job.rows import BadRow, JobRow, RowLimits, read_job
from batchgen.log import Header
from batchgen.logbook import DecisionLog
from batchgen.memory.pool import BOUNDARIES_AHEAD, pages_ahead, pages_for
from batchgen.paths import check_input
from batchgen.plan import EngineSpec, Plan
from batchgen.planning import PlanOptions, plan_options
from batchgen.policy.presets import Preset, build_policy, find_preset
from batchgen.report.record import RunRecord
from batchgen.runtime.core import Runtime
from batchgen.sequence import Status, Table

CAPABILITIES = frozenset({"host", "prefix"})
"""One device with a host tier and shared prefix pages: no switch of layouts, no padding."""

# A pass of a CPU saturates far below a GPU's token budget; measured by `batchgen profile`.
CPU_TOKEN_BUDGET = 2048
CPU_MAX_NUM_SEQS = 256
# Decode passes between two looks at who waits. A CPU runs few rows, so a place that stands empty
# counts for more than the decision: 200 prompts of the small model took 1.42 s with 64 and 1.25 s
# with 16 (`batchgen exec`, 160 pages of 64 tokens, --set plan.boundary=N).
CPU_BOUNDARY = 16
GZIP_MAGIC = b"\x1f\x8b"
# Part of the free memory that the KV arenas of a CPU run may take when no size is given.
MEMORY_FRACTION = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecJob:
    """What `batchgen exec` is asked to do. Page counts None: as much as the rows can need, bounded

    by a quarter of the free memory. `max_tokens`: output budget of rows that name none. `exact`:
    the same tokens whatever the policy does, in float32 on the cpu. `body`: module:function of the
    body that every row runs.
    """

    model: Path
    input: Path
    output: Path
    policy: str = "batchgen"
    overrides: tuple[tuple[str, str], ...] = ()
    dtype: str = "float32"
    exact: bool = False
    device: str = "cpu"
    max_tokens: int = 256
    seed: int = 0
    limit: int | None = None
    hbm_pages: int | None = None
    host_pages: int | None = None
    threads: int | None = None
    force: bool = False
    log: str = "off"
    body: str | None = None


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A job with its worker: everything but the clock. Runs once."""

    job: ExecJob
    folder: Path  # of the model
    preset: Preset
    plan: Plan
    worker: Worker
    tokenizer: Tokenizer
    rows: list[JobRow | BadRow]
    digest: InputDigest
    jobs: list[JobRow]
    table: Table
    load_s: float
    overrides: dict[str, str] = field(default_factory=dict)
    page_keys: list[list[int]] | None = None  # per row, where rows share prompt pages
    body: BodyFactory | None = None

    def fresh_table(self) -> Table:
        """The rows as they were read; a run changes its table."""
        return table_of(self.jobs)

    def runtime(
        self,
        *,
        table: Table | None = None,
        reference: bool = False,
        bodies: Bodies | None = None,
    ) -> Runtime:
        """A fresh runtime over the job's table, or over another of the same rows; with the job's
        bodies, or with others."""
        policy = build_policy(self.preset, self.overrides, CAPABILITIES)
        return Runtime(
            self.table if table is None else table,
            self.plan,
            policy,
            reference=reference,
            page_keys=None if self.page_keys is None else self.page_keys.__getitem__,
            bodies=self.body if bodies is None else bodies,
            view=self.view,
        )

    def view(self, table: Table, row: int) -> TextView:
        """What the body of a row sees."""
        return TextView(table, row, self.jobs[row], self.worker, self.tokenizer)

    def log(self, backend: str = "exec", *, reference: bool = False) -> DecisionLog:
        """A fresh decision log with this run's header."""
        table = self.fresh_table()
        return DecisionLog(
            Header(
                backend=backend,
                full=self.job.log != "steps",
                plan=self.plan,
                preset=self.preset.name,
                overrides=self.overrides,
                capabilities=sorted(CAPABILITIES),
                prompt_tokens=table.prompt.tolist(),
                budget_tokens=table.budget.tolist(),
                page_keys=self.page_keys,
                reference=reference,
                bodies=self.job.body or "",
            )
        )


def prepare(job: ExecJob) -> Prepared:
    """Load the model, read the rows, size the arenas. Raises UserError for anything wrong."""
    folder = find_model(job.model)
    check_input("input", job.input, remedy="give a JSONL file")
    with job.input.open("rb") as file:
        if file.read(2) == GZIP_MAGIC:
            raise UserError(f"input {job.input} is compressed", remedy="unpack it with gunzip")
    overrides = dict(job.overrides)
    preset = find_preset(job.policy)
    build_policy(preset, overrides, CAPABILITIES)  # refuse a bad --set before loading anything
    options = plan_options(overrides)
    body = load_body(job.body) if job.body is not None else None
    if options.prefill_engines:
        raise UserError(
            f"--set plan.prefill_engines={options.prefill_engines}: exec runs one engine",
            remedy="leave it out",
            code="capability",
        )
    if "plan.memory_fraction" in overrides:
        raise UserError(
            "--set plan.memory_fraction: exec does not size its memory by it",
            remedy="give --hbm-pages and --host-pages",
        )
    page_tokens = options.page_tokens or preset.page_tokens
    _check_weights_fit(job, folder)
    began = time.perf_counter()
    tokenizer = Tokenizer(folder)
    worker = Worker(
        folder,
        page_tokens=page_tokens,
        hbm_pages=1,
        host_pages=0,
        dtype=job.dtype,
        threads=job.threads,
        exact=job.exact,
        device=job.device,
    )
    load_s = time.perf_counter() - began
    max_context = worker.config.max_context
    limits = RowLimits(
        max_context=max_context,
        default_max_output=job.max_tokens,
        run_seed=job.seed,
        keep_requests=body is not None,
    )
    digest = InputDigest()
    rows = read_job(job.input, tokenizer, limits, limit=job.limit, digest=digest)
    tokenizer.release()
    jobs = [row for row in rows if isinstance(row, JobRow)]
    if not jobs:
        bad = next(row for row in rows if isinstance(row, BadRow))
        raise UserError(
            f"no row of {job.input} can run; line {bad.line}: {bad.message}",
            remedy="mend the rows",
        )
    table = table_of(jobs)
    plan = _plan(job, options, preset, worker, jobs, max_context)
    worker.resize(hbm_pages=plan.engines[0].hbm_pages, host_pages=plan.engines[0].host_pages)
    for index, row in enumerate(jobs):
        worker.add_row(
            index,
            row.prompt_ids,
            max_output=row.max_output,
            stop_ids=frozenset() if row.ignore_eos else tokenizer.eos_token_ids,
            sampling=None if row.sampling.greedy else row.sampling,
        )
    return Prepared(
        job=job,
        folder=folder,
        preset=preset,
        plan=plan,
        worker=worker,
        tokenizer=tokenizer,
        rows=rows,
        digest=digest,
        jobs=jobs,
        table=table,
        load_s=load_s,
        overrides=overrides,
        body=body,
        page_keys=(
            shared_page_keys([row.prompt_ids for row in jobs], page_tokens)
            if (preset.prefix_cache if options.prefix_cache is None else options.prefix_cache)
            else None
        ),
    )


def table_of(jobs: Sequence[JobRow]) -> Table:
    """A table of rows that have arrived nowhere yet."""
    return Table([len(row.prompt_ids) for row in jobs], [row.max_output for row in jobs])


def _plan(
    job: ExecJob,
    options: PlanOptions,
    preset: Preset,
    worker: Worker,
    jobs: Sequence[JobRow],
    max_context: int,
) -> Plan:
    page = worker.page_tokens
    boundary = options.boundary or (CPU_BOUNDARY if job.device == "cpu" else preset.boundary)
    longest = [len(row.prompt_ids) + row.max_output for row in jobs]
    if job.body is not None:  # nobody knows how far a body extends its row
        longest = [max_context] * len(jobs)
    wanted = pages_wanted(longest, page, boundary)
    page_bytes = worker.config.kv_page_elements(page) * _itemsize(job)
    free = _free_memory_bytes()
    room = max(2, int(free * MEMORY_FRACTION) // page_bytes)
    hbm = job.hbm_pages if job.hbm_pages is not None else min(wanted, room)
    host = job.host_pages if job.host_pages is not None else min(wanted, room)
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
        page_tokens=page,
        boundary=boundary,
        engines=(EngineSpec(engine=0, node=0, hbm_pages=hbm, host_pages=host),),
        token_budget=options.token_budget or preset.token_budget or CPU_TOKEN_BUDGET,
        max_num_seqs=options.max_num_seqs or preset.max_num_seqs or CPU_MAX_NUM_SEQS,
        max_context=max_context,
        b_attn=options.b_attn,
        b_moe=options.b_moe,
        depth=options.depth,
    )


def shared_page_keys(prompts: Sequence[Sequence[int]], page_tokens: int) -> list[list[int]] | None:
    """Chained keys of every prompt's full pages; None when no two prompts share a page, so that
    nothing is spent on an index without use."""
    keys: list[list[int]] = []
    seen: set[int] = set()
    shared = False
    for ids in prompts:
        chain: list[int] = []
        digest = b""
        for start in range(0, len(ids) - page_tokens + 1, page_tokens):
            page = np.asarray(ids[start : start + page_tokens], dtype=np.int64).tobytes()
            digest = hashlib.blake2b(digest + page, digest_size=8).digest()
            key = int.from_bytes(digest, "little") >> 1  # fits JSON's signed 64 bits
            shared = shared or key in seen
            chain.append(key)
        seen.update(chain)
        keys.append(chain)
    return keys if shared else None


def pages_wanted(longest_tokens: Sequence[int], page_tokens: int, boundary: int) -> int:
    """Pages with which no row of these lengths ever waits for memory: its own and those that lazy
    admission keeps free for it."""
    ahead = pages_ahead(boundary, BOUNDARIES_AHEAD, page_tokens)
    return max(2, sum(pages_for(tokens, page_tokens) + ahead for tokens in longest_tokens))


def _itemsize(job: ExecJob) -> int:
    return 4 if job.dtype == "float32" else 2


def _check_weights_fit(job: ExecJob, folder: Path) -> None:
    """Refuse a model that memory cannot hold, before the system kills the process for it."""
    shapes = expected_shapes(load_config(folder)).values()
    need, free = sum(map(math.prod, shapes)) * _itemsize(job), _free_memory_bytes()
    if need > free:
        raise UserError(
            f"model {job.model} needs {need / 1e9:.1f} GB in {job.dtype}, "
            f"{free / 1e9:.1f} GB of memory are free",
            remedy="choose a smaller model or --dtype bfloat16",
            code="capacity",
        )


def _free_memory_bytes() -> int:
    """Memory that new tensors may use, from the operating system: free, or cached files."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux: pages that nothing uses at all
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a run left: its driver, the produced tokens and reasons of every row that could run."""

    driver: Driver
    tokens: dict[int, list[int]]
    reasons: dict[int, str]


def drive(
    prepared: Prepared,
    clock: Clock,
    *,
    arrivals_ps: Sequence[int] | None = None,
    events: Sequence[tuple[int, ev.Event]] = (),
    log: DecisionLog | None = None,
    progress: Callable[[int, int, int], None] | None = None,
    on_row: Callable[[int, str, str | None, list[Stage]], None] | None = None,
    reference: bool = False,
) -> Ran:
    """Run the rows of a prepared job. `arrivals_ps` per row (default: all at 0).

    on_row: told of every row that ended, with its reason, what was wrong if it failed, its stages.
    """
    worker = prepared.worker
    tokens: dict[int, list[int]] = {}

    def keep(row: int, reason: str) -> None:
        tokens[row] = worker.tokens(row)
        if on_row is not None:
            on_row(row, reason, driver.why.get(row), worker.stages(row))

    runtime = prepared.runtime(reference=reference)
    if log is not None:
        log.listen(runtime.bodies)
    driver = Driver(
        runtime,
        worker,
        clock,
        observer=log,
        progress=progress,
        on_finish=keep,
    )
    num_rows = len(prepared.jobs)
    times: dict[int, list[int]] = {}
    for row in range(num_rows):
        times.setdefault(0 if arrivals_ps is None else int(arrivals_ps[row]), []).append(row)
    for at_ps in sorted(times):
        driver.schedule(ev.Arrived(times[at_ps]), at_ps)
    driver.schedule(ev.InputClosed(), max(times, default=0))
    for at_ps, event in events:
        driver.schedule(event, at_ps)
    with chdir("."):  # bodies of users may go elsewhere; paths of the job are relative
        driver.run()
    return Ran(driver=driver, tokens=tokens, reasons=driver.reasons)


def execute(
    job: ExecJob, *, progress: Callable[[int, int, int], None] | None = None
) -> tuple[RunRecord, dict[str, int]]:
    """Answer every row of the input; returns the record and counts of rows done and in error."""
    began = time.perf_counter()
    with OutputWriter(job.output, inputs=job.input, force=job.force) as writer:
        prepared = prepare(job)
        answers = Answers(writer, prepared.tokenizer, job.model.name)
        for row in prepared.rows:
            if isinstance(row, BadRow):
                answers.bad_row(row)

        def ended(number: int, reason: str, why: str | None, stages: list[Stage]) -> None:
            answers.ended(prepared.jobs[number], reason, why, stages)

        log = prepared.log() if job.log != "off" else None
        ran = drive(prepared, WallClock(), log=log, progress=progress, on_row=ended)
        writer.commit(len(prepared.rows))
    record = build_record(prepared, ran, time.perf_counter() - began, log)
    return record, {"done": answers.done, "errors": answers.errors}


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
        "model_folder": str(prepared.folder),
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


def _kernels_remark(prepared: Prepared) -> str:
    """Why nothing compiled ran on the CPU; "" if it did, and elsewhere."""
    job, model = prepared.job, prepared.worker.config
    if job.device != "cpu":
        return ""
    return why_not(getattr(torch, job.dtype), model.num_heads // model.num_kv_heads)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def clocked(
    prepared: Prepared,
    cost: CostModel,
    *,
    arrivals_ps: Sequence[int] | None = None,
    events: Sequence[tuple[int, ev.Event]] = (),
    reference: bool = False,
) -> tuple[Ran, DecisionLog]:
    """The job on a stub clock that advances by `cost`: the executor's half of agreement (c)."""
    log = prepared.log(reference=reference)
    ran = drive(
        prepared,
        ModelClock(cost),
        arrivals_ps=arrivals_ps,
        events=events,
        log=log,
        reference=reference,
    )
    return ran, log
