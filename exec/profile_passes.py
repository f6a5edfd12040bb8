"""Run small jobs for real and keep the load and time of every pass. Fits nothing.

Whole jobs, with the runtime between their passes: prompts alone in passes of growing size, then
rows that come and go as they end, in few seats and in many. With prompts from a file the text is
such as the model will meet, which decides how many experts a pass wakes; without, it is random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from batchgen import events as ev
from batchgen.cost.overheads import MeasuredPass
from batchgen.errors import UserError
from batchgen.exec.clock import WallClock
from batchgen.exec.driver import Driver
from batchgen.exec.job import CAPABILITIES
from batchgen.exec.profile_grid import Grid
from batchgen.exec.sizing import limits_of, pages_wanted, room_pages
from batchgen.exec.tokenizer import Tokenizer
from batchgen.exec.worker import Worker
from batchgen.job.rows import JobRow, RowLimits, TokenIds, read_job
from batchgen.plan import EngineSpec, Plan
from batchgen.policy.presets import build_policy, find_preset
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table
from batchgen.units import PS_PER_S

ENOUGH_PASSES = 12  # of one size; more of the same add little
LARGEST_BOUNDARY = 64  # of the presets that run here


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A row of a profile's job: token ids, most output tokens, tokens that end it."""

    ids: TokenIds
    max_output: int
    stop_ids: frozenset[int]


def read_prompts(path: Path, model_dir: Path, worker: Worker, grid: Grid) -> list[Prompt]:
    """The first rows of a file for `batchgen exec`; rows that it would refuse are left out."""
    tokenizer = Tokenizer(model_dir)
    limits = RowLimits(max_context=worker.config.max_context, default_max_output=grid.outputs)
    rows = [row for row in read_job(path, tokenizer, limits) if isinstance(row, JobRow)]
    if not rows:
        raise UserError(f"{path} holds no row that can run", remedy="give rows for batchgen exec")
    return [
        Prompt(
            ids=row.prompt_ids,
            max_output=min(row.max_output, grid.outputs),
            stop_ids=frozenset() if row.ignore_eos else tokenizer.eos_token_ids,
        )
        for row in rows[: grid.prompts]
    ]


def random_prompts(worker: Worker, grid: Grid) -> list[Prompt]:
    """Random tokens: many short rows, few long ones, in and out."""
    generator = np.random.default_rng(0)
    config, context = worker.config, worker.config.max_context
    prompt_tokens = min(grid.prompt_tokens, max(grid.contexts))
    longest = min(prompt_tokens, context // 2), min(grid.outputs, context // 2)
    sizes = [
        np.exp(generator.uniform(np.log(min(4, most)), np.log(most), grid.prompts)).astype(int)
        for most in longest
    ]
    return [
        Prompt(
            ids=generator.integers(0, config.vocab_size, n).tolist(),
            max_output=int(m),
            stop_ids=frozenset(),
        )
        for n, m in zip(*sizes, strict=True)
    ]


def run_passes(
    worker: Worker,
    prompts: Sequence[Prompt],
    grid: Grid,
    between: Callable[[], None] = lambda: None,
) -> list[MeasuredPass]:
    """Every pass of the jobs that `grid.patience_s` is enough for, at least of one prompt alone and
    of the job with the fewest seats; `between` is called before each. Each kind runs once before it
    counts: first calls pay for what is new. On a GPU, which compiles kernels and captures graphs
    for sizes that it has not seen, whole jobs do, for as long again."""
    passes: list[MeasuredPass] = []
    run_job(worker, "static", [_first_token(prompts[0])], 1)
    run_job(worker, "vllm", prompts[:4], 2)
    if worker.device != "cpu":
        worker.warm_up(token_budget=limits_of(worker.device).token_budget, seats=max(grid.seats))
        hold_pages(worker, prompts, max(grid.seats))
        end = time.perf_counter() + grid.patience_s
        for preset, rows, seats in _jobs(prompts, replace(grid, rounds=1)):
            if time.perf_counter() < end:
                run_job(worker, preset, rows, seats)
    end = time.perf_counter() + grid.patience_s
    for number, (preset, rows, seats) in enumerate(_jobs(prompts, grid)):
        if number < 2 or time.perf_counter() < end:
            between()
            passes += run_job(worker, preset, rows, seats)
    return passes


def hold_pages(worker: Worker, prompts: Sequence[Prompt], seats: int) -> None:
    """An arena for all jobs of a GPU, whose graphs hold its address."""
    page, boundary = worker.page_tokens, limits_of(worker.device).boundary or LARGEST_BOUNDARY
    wanted = pages_wanted([len(p.ids) + p.max_output for p in prompts], page, boundary, 4 * seats)
    worker.resize(hbm_pages=0, host_pages=0)
    room = room_pages(worker.device, worker.page_bytes)
    worker.resize(hbm_pages=min(wanted, room), host_pages=0)


def _jobs(prompts: Sequence[Prompt], grid: Grid) -> Iterator[tuple[str, Sequence[Prompt], int]]:
    """Preset, rows and seats of each job.

    Rows of all lengths, and the short half of them with short answers: a full batch then reads
    little KV, which caches may hold, and much, which they do not.
    """
    half = sorted(prompts, key=lambda prompt: len(prompt.ids))[: (len(prompts) + 1) // 2]
    short = [replace(p, max_output=min(p.max_output, max(2, grid.outputs // 8))) for p in half]
    for _ in range(grid.rounds):
        yield "static", [_first_token(prompts[0])], 1
        for seats in grid.seats:  # every seat is taken again
            yield "vllm", prompts[: 4 * seats], seats
            yield "vllm", short[: 4 * seats], seats
        for group in _prefill_groups(prompts, grid.max_prefill_tokens):
            yield "static", group, len(group)


def _first_token(prompt: Prompt) -> Prompt:
    return Prompt(ids=prompt.ids, max_output=1, stop_ids=frozenset())


def _prefill_groups(prompts: Sequence[Prompt], most_tokens: int) -> Iterator[list[Prompt]]:
    """1, 2, 4, ... prompts that end with their first token, taken in turn."""
    rng = np.random.default_rng(1)
    count = 1
    while True:
        largest = 0
        for _ in range(max(2, ENOUGH_PASSES // count)):
            chosen = rng.integers(0, len(prompts), count)
            group = [_first_token(prompts[i]) for i in chosen]
            tokens = sum(len(prompt.ids) for prompt in group)
            largest = max(largest, tokens)
            if tokens <= most_tokens or count == 1:
                yield group
        if largest > most_tokens:
            return
        count *= 2


def run_job(
    worker: Worker, preset_name: str, prompts: Sequence[Prompt], seats: int
) -> list[MeasuredPass]:
    """One job by one preset, with memory for all its rows as far as a GPU has it."""
    preset, limits = find_preset(preset_name), limits_of(worker.device)
    page, boundary = worker.page_tokens, limits.boundary or preset.boundary
    hbm_pages = pages_wanted([len(p.ids) + p.max_output for p in prompts], page, boundary)
    if worker.device == "cpu" or worker.pages_in("hbm") < hbm_pages:
        worker.resize(hbm_pages=0, host_pages=0)  # what it had is free again
        hbm_pages = min(hbm_pages, room_pages(worker.device, worker.page_bytes))
        worker.resize(hbm_pages=hbm_pages, host_pages=0)
    table = Table([len(p.ids) for p in prompts], [p.max_output for p in prompts])
    plan = Plan(
        page_tokens=page,
        boundary=boundary,
        engines=(EngineSpec(engine=0, node=0, hbm_pages=hbm_pages),),
        token_budget=limits.token_budget,
        max_num_seqs=seats,
        max_context=worker.config.max_context,
        depth=limits.depth,
    )
    for row, prompt in enumerate(prompts):
        worker.add_row(row, prompt.ids, max_output=prompt.max_output, stop_ids=prompt.stop_ids)
    runtime = Runtime(table, plan, build_policy(preset, {}, CAPABILITIES))
    driver = Driver(runtime, worker, WallClock())
    driver.schedule(ev.Arrived(list(range(len(prompts)))), 0)
    driver.schedule(ev.InputClosed(), 0)
    driver.run()
    return measured_passes(driver)


def measured_passes(driver: Driver) -> list[MeasuredPass]:
    """The passes that a driver ran on the wall clock."""
    passes = driver.record.passes
    names = ("decodes", "context", "chunk_tokens", "chunk_pairs", "chunk_reads", "samples")
    columns = zip(*(passes[name] for name in names), strict=True)
    seconds = (
        (gap + duration) / PS_PER_S
        for gap, duration in zip(passes["gap_ps"], passes["duration_ps"], strict=True)
    )
    return [
        MeasuredPass(**dict(zip(names, load, strict=True)), seconds=s)
        for load, s in zip(columns, seconds, strict=True)
    ]
