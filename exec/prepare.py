"""A job made ready: model loaded, rows read, memory planned. Everything but the clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from batchgen.bodies import Bodies
from batchgen.bodyname import load_body
from batchgen.cores import num_cores
from batchgen.coroutine import BodyFactory
from batchgen.cost.efficiency import refuse_constants
from batchgen.cost.residency import Residency
from batchgen.errors import Unfinished, UserError
from batchgen.exec.config import ModelConfig
from batchgen.exec.devices import check_device
from batchgen.exec.free_memory import resident_bytes
from batchgen.exec.generation import sampling_defaults
from batchgen.exec.hub import find_model
from batchgen.exec.job import CAPABILITIES, ExecJob
from batchgen.exec.job_rows import JobRows
from batchgen.exec.kept import KeptModel
from batchgen.exec.past import Ints, Past
from batchgen.exec.prefix_keys import num_shared_pages, shared_page_keys
from batchgen.exec.rows import RowInput
from batchgen.exec.sizing import check_weights_fit, limits_of, make_plan, pass_limits
from batchgen.exec.stops import ending_ids
from batchgen.exec.textview import TextView
from batchgen.exec.tokenizer import Tokenizer
from batchgen.exec.transformer import check_mode
from batchgen.exec.worker import Worker
from batchgen.job.inputs import form_of
from batchgen.job.jsonl import InputDigest
from batchgen.job.rows import BadRow, RowLimits, read_chunks
from batchgen.job.sampling import SamplingDefaults
from batchgen.log import Header
from batchgen.logbook import DecisionLog
from batchgen.paths import check_input
from batchgen.plan import Plan
from batchgen.planning import PlanOptions, plan_options
from batchgen.policy.presets import Preset, build_policy, find_preset
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table

MOST_REPLAYED = 200_000
"""Sequences and keys of their pages up to which a log that nobody asked for can be replayed."""


@dataclass(slots=True)
class ReadRows:
    """What was read of the input: `jobs` can run, `refused` counts those that cannot, by code,
    `num_answered` those that an earlier process has answered, `unknown` fields that nobody
    knows."""

    num_rows: int = 0
    num_answered: int = 0
    first_bad: BadRow | None = None
    jobs: JobRows = field(default_factory=JobRows)
    refused: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A job with its worker: everything but the clock. Runs once."""

    job: ExecJob
    folder: Path  # of the model
    preset: Preset
    plan: Plan
    worker: Worker
    tokenizer: Tokenizer
    read: ReadRows
    digest: InputDigest
    table: Table
    load_s: float
    process_bytes: int  # what the process took before it had anything of the job
    sampling: SamplingDefaults  # of rows that do not say otherwise
    overrides: dict[str, str] = field(default_factory=dict)
    page_keys: list[list[int]] | None = None  # per row, where rows share prompt pages
    body: BodyFactory | None = None
    produced: list[int] | None = None  # per row, tokens of an earlier process; None: nowhere any

    @property
    def jobs(self) -> JobRows:
        """A row of the scheduler each: one per sample."""
        return self.read.jobs

    def fresh_table(self) -> Table:
        """The rows as they were read; a run changes its table."""
        return table_of(self.jobs, self.produced)

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

    def log(
        self,
        backend: str = "exec",
        *,
        reference: bool = False,
        sink: Callable[[bytes], None] = lambda packed: None,
        keep: bool = True,
    ) -> DecisionLog:
        """A fresh decision log with this run's header."""
        table = self.fresh_table()
        full = self.job.log != "steps"
        if self.job.log == "auto":  # replayed in full, but a header of millions of keys is too much
            keys = 0 if self.page_keys is None else sum(map(len, self.page_keys))
            full = len(table) + keys <= MOST_REPLAYED
        return DecisionLog(
            Header(
                backend=backend,
                full=full,
                plan=self.plan,
                preset=self.preset.name,
                overrides=self.overrides,
                capabilities=sorted(CAPABILITIES),
                prompt_tokens=table.prompt.tolist(),
                budget_tokens=table.budget.tolist(),
                produced_tokens=self.produced,
                page_keys=self.page_keys if full else None,
                reference=reference,
                bodies=self.job.body or "",
            ),
            sink=sink,
            keep=keep,
        )


def worker_of(device: str) -> type[Worker]:
    """The class of workers for a device."""
    if device == "cpu":
        return Worker
    from batchgen.exec.gpu.worker import QueuedWorker

    return QueuedWorker


def prepare(
    job: ExecJob,
    make: Callable[..., Worker] | None = None,
    *,
    kept: KeptModel | None = None,
    past: Past | None = None,
    on_bad: Callable[[BadRow], None] = lambda row: None,
    giving_up: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Load the model, read the rows, size the arenas. `make` makes the worker, if not the one of
    the device; `kept` may have its model; `past`: what an earlier process has achieved; `on_bad`
    gets the rows that cannot run. Raises UserError for what is wrong, and Unfinished where
    `giving_up`, asked while rows are read, says so."""
    past = Past() if past is None else past
    folder = find_model(job.model)
    preset, overrides, options = check_job(job)
    sampling = sampling_defaults(folder, job.temperature)
    body = load_body(job.body) if job.body is not None else None
    page_tokens = options.page_tokens or preset.page_tokens
    if kept is None or not kept.holds(folder, job.dtype, job.exact, job.device):
        check_weights_fit(job, folder)
    if kept is not None:
        make = partial(kept.worker, make or worker_of(job.device))
    process_bytes = resident_bytes()
    began = time.perf_counter()
    tokenizer = Tokenizer(folder, now=past.now)
    worker = (make or worker_of(job.device))(
        folder,
        page_tokens=page_tokens,
        hbm_pages=1,
        host_pages=0,
        dtype=job.dtype,
        threads=job.threads,
        exact=job.exact,
        device=job.device,
    )
    token_budget, seats = pass_limits(job.device, options, preset)
    pass_bytes = worker.warm_up(token_budget=token_budget, seats=seats)
    load_s = time.perf_counter() - began
    limits = limits_of_rows(job, worker.config.max_context, sampling)
    digest = InputDigest()
    read = read_all(job, tokenizer, limits, digest, past, on_bad, giving_up)
    check_any(job, read)
    jobs = read.jobs
    plan, keys = plan_rows(job, jobs, worker.config, pass_bytes=pass_bytes)
    worker.resize(hbm_pages=plan.engines[0].hbm_pages, host_pages=plan.engines[0].host_pages)
    worker.schedule_by(plan)
    tokens = past.tokens(jobs)
    produced = [len(tokens.get(row, ())) for row in range(len(jobs))] if tokens else None
    worker.feed(_source(jobs, tokenizer.eos_token_ids, tokens), tokenizer.decode)
    return Prepared(
        job=job,
        folder=folder,
        preset=preset,
        plan=plan,
        worker=worker,
        tokenizer=tokenizer,
        read=read,
        digest=digest,
        table=table_of(jobs, produced),
        load_s=load_s,
        process_bytes=process_bytes,
        sampling=sampling,
        overrides=overrides,
        body=body,
        page_keys=keys,
        produced=produced,
    )


def check_job(job: ExecJob) -> tuple[Preset, dict[str, str], PlanOptions]:
    """What can be refused before anything is loaded."""
    check_input("input", job.input, remedy="give a JSONL file")
    form_of(job.input, job.form)
    return check_options(job)


def _simulated_only(job: ExecJob, preset: Preset) -> UserError:
    """Places on the host that an executor does not know: the system's own, or the user's."""
    own = plan_options({}, preset.plan).residency != Residency()
    if own:
        what = f"{job.policy} streams weights from the host or its disks"
        remedy = "choose another policy; `batchgen sim` runs this one"
    else:
        what = (
            "--set plan.weights, plan.kv, plan.attention, plan.disk_share, plan.resident_share, "
            "plan.row_bytes, plan.gpu_batches"
        )
        remedy = "leave them out"
    return UserError(f"{what}: of the simulator only", remedy=remedy, code="capability")


def check_options(job: ExecJob) -> tuple[Preset, dict[str, str], PlanOptions]:
    """The same without the input."""
    check_device(job.device)
    check_mode(job.dtype, exact=job.exact, device=job.device)
    overrides = dict(job.overrides)
    preset = find_preset(job.policy)
    build_policy(preset, overrides, CAPABILITIES)
    refuse_constants(overrides, "an executor takes the time that it takes")
    options = plan_options(overrides, preset.plan)
    depth = limits_of(job.device).depth
    if depth > 1 and "plan.depth" not in overrides and "depth" not in preset.plan:
        options = replace(options, depth=depth)
    if options.prefill_engines:
        raise UserError(
            f"--set plan.prefill_engines={options.prefill_engines}: exec runs one engine",
            remedy="leave it out",
            code="capability",
        )
    if options.residency != Residency():
        raise _simulated_only(job, preset)
    if options.max_context is not None:
        raise UserError(
            "--set plan.max_context: exec keeps to the context of the checkpoint",
            remedy="leave it out; --max-tokens bounds what rows produce",
            code="capability",
        )
    if "plan.memory_fraction" in overrides:
        raise UserError(
            "--set plan.memory_fraction: exec does not size its memory by it",
            remedy="give --hbm-pages and --host-pages",
        )
    return preset, overrides, options


def limits_of_rows(job: ExecJob, max_context: int, sampling: SamplingDefaults) -> RowLimits:
    """What rows of the job may be, and what they are where they say nothing."""
    return RowLimits(
        max_context=max_context,
        default_max_output=job.max_tokens,
        run_seed=job.seed,
        keep_requests=job.body is not None,
        strict=job.strict,
        models=frozenset(job.models) or None,
        sampling=sampling,
    )


def read_all(
    job: ExecJob,
    tokenizer: Tokenizer,
    limits: RowLimits,
    digest: InputDigest,
    past: Past,
    on_bad: Callable[[BadRow], None],
    giving_up: Callable[[], bool] = lambda: False,
) -> ReadRows:
    """The rows of the input that have no answer yet, up to the job's limit. Raises UserError for an
    input without any."""
    read = ReadRows(unknown=limits.unknown)
    chunks = read_chunks(
        job.input,
        tokenizer,
        limits,
        limit=job.limit,
        digest=digest,
        form=form_of(job.input, job.form),
        shape=job.shape,
        answered=past.has_answered if len(past.answered) else None,
        shard=job.shard,
        threads=num_cores(),
    )
    try:
        for chunk in chunks:
            _check_wanted(giving_up)
            read.num_rows += len(chunk)
            read.num_answered += len(chunk.answered)
            read.jobs.extend(chunk.good)
            for row in chunk.bad:
                read.first_bad = read.first_bad or row
                read.refused[row.code] += 1
                on_bad(row)
        _check_wanted(giving_up)
    finally:
        chunks.close()
        tokenizer.release()
    if not read.num_rows and job.shard is not None:
        part, parts = job.shard
        raise UserError(f"{job.input} holds no rows of shard {part}/{parts}", remedy="take fewer")
    if not read.num_rows:
        raise UserError(f"{job.input} holds no rows", remedy="put one JSON object on each line")
    return read


def _check_wanted(giving_up: Callable[[], bool]) -> None:
    if giving_up():
        raise Unfinished("stopped while the input was read", remedy="begin again", code="stopped")


def check_any(job: ExecJob, read: ReadRows) -> None:
    """Raises UserError unless a row can run or has been answered; a shard, or a job that says so,
    may have none."""
    may_be_none = job.shard is not None or not job.some_must_run
    if not may_be_none and read.first_bad is not None and not read.jobs and not read.num_answered:
        raise UserError(
            f"no row of {job.input} can run; line {read.first_bad.line}: {read.first_bad.message}",
            remedy="mend the rows",
        )


def plan_rows(
    job: ExecJob, jobs: JobRows, config: ModelConfig, *, pass_bytes: int
) -> tuple[Plan, list[list[int]] | None]:
    """The plan of a job with these rows, and the keys of the prompt pages that rows share, if the
    plan has a use for them. `pass_bytes` as in `make_plan`."""
    preset, overrides, options = check_job(job)
    policy = build_policy(preset, overrides, CAPABILITIES)
    page_tokens = options.page_tokens or preset.page_tokens
    keys = None
    if preset.prefix_cache if options.prefix_cache is None else options.prefix_cache:
        keys = shared_page_keys(jobs.prompts_of_samples(), page_tokens)
    plan = make_plan(
        job,
        options,
        preset,
        config,
        jobs.prompt_tokens() + jobs.max_output(),
        page_tokens=page_tokens,
        uses_host=any("host" in part.needs for part in policy.parts.values()),
        shared_pages=0 if keys is None else num_shared_pages(keys),
        pass_bytes=pass_bytes,
    )
    return plan, keys


def _source(
    jobs: JobRows, eos_ids: frozenset[int], tokens: Mapping[int, Ints]
) -> Callable[[int], RowInput]:
    """What the worker is told of a row when it begins."""

    def row_input(row: int) -> RowInput:
        job = jobs[row]
        return RowInput(
            prompt_ids=job.prompt_ids,
            max_output=job.max_output,
            stop_ids=ending_ids(job, eos_ids),
            sampling=None if job.sampling.plain else job.sampling,
            stop=job.stop,
            produced_ids=tokens[row].tolist() if row in tokens else (),
        )

    return row_input


def table_of(jobs: JobRows, produced: Sequence[int] | None = None) -> Table:
    """A table of rows that have arrived nowhere yet; they may have tokens of an earlier process."""
    return Table(
        jobs.prompt_tokens().astype(np.int32),
        jobs.max_output().astype(np.int32),
        produced_tokens=produced,
    )
