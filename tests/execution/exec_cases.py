"""Small jobs for the executor, the undisturbed answers, and one function that runs a job."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from batchgen import events as ev
from batchgen.cost.build import build_cost
from batchgen.exec.clock import ModelClock
from batchgen.exec.driver import Driver
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import Prepared, prepare
from batchgen.exec.worker import Worker
from batchgen.hardware import load_gpu
from batchgen.layout import Layout
from batchgen.model import load_model
from batchgen.runtime.core import Runtime

PRESETS = ("static", "orca", "vllm", "batchgen")
STOPS = frozenset({258, 260})
NEAR_TIE = 1e-3
"""Logits closer than this may change places when sums are made in another order (float32)."""


def prompt(number: int) -> list[int]:
    """One of a fixed family of prompts, of 1 to 60 tokens."""
    rng = np.random.default_rng((41, number))
    ids: list[int] = rng.integers(0, 256, int(rng.integers(1, 61))).tolist()
    return ids


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows are (number of the prompt, output budget); `cancels` are (time in ps, row)."""

    policy: str
    rows: tuple[tuple[int, int], ...]
    arrivals_ps: tuple[int, ...] | None = None
    hbm_pages: int = 24
    host_pages: int = 0
    page: int = 8
    boundary: int = 8
    budget: int = 64
    seqs: int = 8
    depth: int = 1
    cancels: tuple[tuple[int, int], ...] = ()
    ignore_eos: bool = False
    overrides: tuple[tuple[str, str], ...] = ()

    def job(self, model: Path, folder: Path) -> ExecJob:
        path = folder / "rows.jsonl"
        lines = [
            {"prompt": prompt(number), "max_tokens": budget, "ignore_eos": self.ignore_eos}
            for number, budget in self.rows
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        sizes = {
            "plan.page_tokens": self.page,
            "plan.boundary": self.boundary,
            "plan.token_budget": self.budget,
            "plan.max_num_seqs": self.seqs,
            "plan.depth": self.depth,
        }
        return ExecJob(
            model=model,
            input=path,
            output=folder / "out.jsonl",
            policy=self.policy,
            overrides=(*((name, str(size)) for name, size in sizes.items()), *self.overrides),
            hbm_pages=self.hbm_pages,
            host_pages=self.host_pages,
            threads=1,
        )


@dataclass(kw_only=True)
class Outcome:
    """What a run did. `held` after every step: (hbm leased, hbm used, host leased, host used,
    whether leases may be ahead of use)."""

    prepared: Prepared
    runtime: Runtime
    driver: Driver
    tokens: dict[int, list[int]] = field(default_factory=dict)
    held: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    entries: list[tuple[ev.Event, int, list[Any]]] = field(default_factory=list)

    @property
    def reasons(self) -> dict[int, str]:
        return self.driver.reasons


@cache
def cost_of(model: Path) -> Any:
    return build_cost(load_model(model), load_gpu("h100"), Layout())


def run(
    case: Case,
    model: Path,
    folder: Path,
    *,
    tweak: Callable[[Worker], None] = id,
    make: Callable[..., Worker] | None = None,
    ahead: bool | None = None,
) -> Outcome:
    """Run a case on the stub clock; `tweak` may break its worker first. `make` and `ahead`: another
    kind of worker, and whether passes are launched before those before them have ended."""
    prepared = prepare(case.job(model, folder), make)
    tweak(prepared.worker)
    return drive_watched(
        prepared,
        arrivals_ps=case.arrivals_ps,
        cancels=case.cancels,
        cost=cost_of(model),
        ahead=ahead,
    )


def drive_watched(
    prepared: Prepared,
    *,
    cost: Any,
    arrivals_ps: Sequence[int] | None = None,
    cancels: Sequence[tuple[int, int]] = (),
    ahead: bool | None = None,
) -> Outcome:
    """`batchgen.exec.drive.drive` with a look at the pages after every step."""
    runtime = prepared.runtime()
    worker = prepared.worker
    rank = runtime.cluster.engines[0].ranks[0]

    def look(now_ps: int, done: int, total: int) -> None:
        ahead = bool(rank.prefilling) or bool(prepared.table.reserved.any())
        leased = rank.used + (rank.prefix.num_cached if rank.prefix is not None else 0)
        host = runtime.host_pages(0)
        if prepared.plan.depth > 1:  # the books are a pass ahead of what the worker has done
            leased, host, ahead = rank.size, prepared.plan.engines[0].host_pages, True
        used = worker.pages_used("hbm"), worker.pages_used("host")
        outcome.held.append((leased, used[0], host, used[1], ahead))

    def keep(row: int, reason: str) -> None:
        outcome.tokens[row] = worker.tokens(row)

    driver = Driver(
        runtime,
        worker,
        ModelClock(cost),
        progress=look,
        on_finish=keep,
        ahead=ahead,
        observer=lambda event, now, actions: outcome.entries.append((event, now, actions)),
    )
    outcome = Outcome(prepared=prepared, runtime=runtime, driver=driver)
    times = arrivals_ps or [0] * len(prepared.jobs)
    for row, at_ps in enumerate(times):
        driver.schedule(ev.Arrived([row]), at_ps)
    driver.schedule(ev.InputClosed(), max(times, default=0))
    for at_ps, row in cancels:
        driver.schedule(ev.Cancelled([row]), at_ps)
    driver.run()
    cached = rank.prefix.num_cached if rank.prefix is not None else 0
    assert worker.pages_used("hbm") == cached
    assert worker.pages_used("host") == 0
    assert rank.used == runtime.host_pages(0) == 0
    return outcome


@cache
def lone_worker(model: Path) -> Worker:
    return Worker(model, page_tokens=8, hbm_pages=40, host_pages=0, threads=1)


@cache
def answer(model: Path, number: int, stops: frozenset[int], most: int = 48) -> tuple[int, ...]:
    """The undisturbed greedy answer to a prompt: one row alone, its prompt in one pass."""
    worker, ids = lone_worker(model), prompt(number)
    worker.add_row(0, ids, max_output=most, stop_ids=stops)
    result = worker.run_pass([], [(0, 0, len(ids), True)])
    while not result.finished:
        result = worker.run_pass([0], [])
    tokens = tuple(worker.tokens(0))
    worker.forget_row(0)
    return tokens


def check_answer(
    model: Path, number: int, got: Sequence[int], most: int, *, stops: frozenset[int] = STOPS
) -> bool:
    """Whether `got` is the undisturbed answer; if not, the first difference must be a near tie."""
    expected = answer(model, number, stops)[:most]
    if tuple(got) == expected[: len(got)]:
        return
    at = next(i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b)
    worker, known = lone_worker(model), [*prompt(number), *expected[:at]]
    seen: list[torch.Tensor] = []
    forward = worker.model.forward
    worker.model.forward = lambda *args: seen.append(forward(*args)) or seen[-1]
    try:
        worker.add_row(0, known, max_output=1, stop_ids=frozenset())
        worker.run_pass([], [(0, 0, len(known), True)])
    finally:
        worker.model.forward = forward
        worker.forget_row(0)
    logits = seen[-1][0]
    gap = float(logits.max() - logits[got[at]])
    assert gap < NEAR_TIE, f"prompt {number}, token {at}: {got[at]} is {gap} below the best"
