"""A prepared job on a clock: the real one, or one that a cost model advances."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass

from batchgen import events as ev
from batchgen.cost.api import CostModel
from batchgen.exec.clock import Clock, ModelClock
from batchgen.exec.driver import Driver
from batchgen.exec.prepare import Prepared
from batchgen.exec.rows import Stage
from batchgen.logbook import DecisionLog
from batchgen.units import PS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a run left: its driver, the produced tokens and reasons of every row that could run."""

    driver: Driver
    tokens: dict[int, list[int]]
    reasons: dict[int, str]


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """The collector leaves alone what was there before: it would walk through all of torch again
    and again."""
    if gc.get_freeze_count():  # somebody else's; his way of freezing stays
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
    keep_tokens: bool = True,
    stopping: Callable[[], bool] | None = None,
    begun: Callable[[Driver], None] | None = None,
) -> Ran:
    """Run the rows of a prepared job. `arrivals_ps` per row (default: all at 0).

    keep_tokens: the result holds all that was produced; else `on_row` is the only one to see it.
    stopping: asked before every pass; the run ends where it says so (`Driver.stopped`).
    begun: gets the driver before it runs, to look at it while it does.
    on_row: told of every row that ended, with its reason, what was wrong if it failed, its stages.
    """
    worker = prepared.worker
    tokens: dict[int, list[int]] = {}

    def keep(row: int, reason: str) -> None:
        if keep_tokens:
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
        stopping=stopping,
        row_timeout_ps=_timeout_ps(prepared.job.row_timeout_s),
    )
    if begun is not None:
        begun(driver)
    num_rows = len(prepared.jobs)
    times: dict[int, list[int]] = {}
    for row in range(num_rows):
        times.setdefault(0 if arrivals_ps is None else int(arrivals_ps[row]), []).append(row)
    for at_ps in sorted(times):
        driver.schedule(ev.Arrived(times[at_ps]), at_ps)
    driver.schedule(ev.InputClosed(), max(times, default=0))
    for at_ps, event in events:
        driver.schedule(event, at_ps)
    # Bodies of users may go elsewhere; paths of the job are relative.
    with chdir("."), _frozen_objects():
        driver.run()
    driver.on_finish = None  # it holds the driver: a cycle would keep arenas until it is found
    return Ran(driver=driver, tokens=tokens, reasons=driver.reasons)


def _timeout_ps(timeout_s: float | None) -> int | None:
    return None if timeout_s is None else round(timeout_s * PS_PER_S)


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
