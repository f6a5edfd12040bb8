"""Runs cases on the plain backend, and says what a run did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batchgen import events as ev
from batchgen.check.case import Case
from batchgen.check.walker import Walker
from batchgen.log import Entry, encode
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table


@dataclass(kw_only=True)
class Outcome:
    """What a run did: entries in order, the composition of every pass, times of rows."""

    case: Case
    walker: Walker
    runtime: Runtime

    @property
    def table(self) -> Table:
        return self.runtime.table

    @property
    def entries(self) -> list[Entry]:
        return self.walker.entries

    @property
    def log(self) -> list[bytes]:
        return [encode(entry) for entry in self.entries]

    @property
    def reasons(self) -> dict[int, str]:
        return self.walker.reasons

    def passes(self) -> list[list[tuple[Any, ...]]]:
        """Per engine: (q, decodes, chunks, finished) of every pass that ran."""
        return self.walker.passes

    def times(self) -> tuple[list[int], list[int]]:
        return self.walker.first, self.walker.end

    def columns(self) -> dict[str, list[int]]:
        names = ("status", "engine", "produced", "preemptions", "recomputed", "suspensions")
        return {name: getattr(self.table, name).tolist() for name in (*names, "migrations")}

    def everything(self) -> dict[str, Any]:
        engines = self.runtime.cluster.engines
        return {
            "passes": self.passes(),
            "times": self.times(),
            "others": sorted(self.walker.others),
            "columns": self.columns(),
            "reasons": sorted(self.reasons.items()),
            "clocks": [
                (engine.q, [rank.k for rank in engine.ranks], engine.layout) for engine in engines
            ],
        }


def build(
    case: Case,
    *,
    checker: Callable[[Runtime, Entry], None] | None = None,
    **options: Any,
) -> Outcome:
    """Set a case up: everything is scheduled, nothing has run."""
    runtime = case.runtime(**options)
    walker = Walker(
        runtime,
        case.plan(),
        [row.output for row in case.rows],
        cost=case.advisor().cost,
        stages={
            index: [output for _, output, _ in row.stages]
            for index, row in enumerate(case.rows)
            if row.stages
        },
        observer=None if checker is None else (lambda entry: checker(runtime, entry)),
    )
    if case.bad_copies:
        walker.copy_fails = lambda copy_id: copy_id % case.bad_copies == 0
    schedule_case(case, walker)
    return Outcome(case=case, walker=walker, runtime=runtime)


def schedule_case(case: Case, walker: Walker) -> None:
    """Arrivals, the end of input and troubles of a case."""
    at: dict[int, list[int]] = {}
    for index, row in enumerate(case.rows):
        at.setdefault(row.arrival, []).append(index)
    for kind, time, one, two in case.troubles:
        schedule(walker, case, kind, time, one, two)
    for time in sorted(at):
        walker.event(ev.Arrived(at[time]), time)
    walker.event(ev.InputClosed(), max(at))


def schedule(walker: Walker, case: Case, kind: str, time: int, one: int, two: int) -> None:
    """One trouble; numbers are taken modulo what exists."""
    engine, row, gpu = one % case.engines, one % len(case.rows), two % case.devices

    def device(call: Callable[[int, int], None]) -> None:
        walker.at(time, 0, 0, lambda: call(engine, gpu))

    if kind == "lost":
        device(walker.lose)
    elif kind == "back":
        device(walker.back)
    elif kind == "notice":
        walker.event(ev.DeviceNotice(engine, gpu, time), time)
    elif kind == "slow":
        factor = 1000 if two % 3 == 0 else 300 + 500 * (two % 8)
        walker.at(time, 0, 0, lambda: walker.slow(engine, gpu, factor))
    elif kind == "cancel":
        walker.event(ev.Cancelled([row, (row + two) % len(case.rows)]), time)
    elif kind == "row_failed":
        walker.event(ev.RowFailed(row, "bad"), time)
    elif kind == "pool_short":
        short = ev.PoolShort(engine, two % case.ranks, 1 + two % (case.hbm_pages // 2))
        walker.event(short, time)
    elif kind == "plan":
        walker.event(ev.PlanChanged(1 + one % 64, 1 + two % 8), time)
    else:
        raise ValueError(kind)


def run(case: Case, **options: Any) -> Outcome:
    """Run a case to its end."""
    outcome = build(case, **options)
    outcome.walker.run()
    return outcome
