"""Random small cases for the core over all compositions, and one function that runs a case."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from core_toy import ToyAdvisor, ToyCost
from core_walker import Walker

from batchgen import events as ev
from batchgen.coroutine import BodyFactory, Extend, SequenceView, Wait
from batchgen.log import Entry, encode
from batchgen.plan import EngineSpec, Plan
from batchgen.policy.presets import PARTS, PRESETS, build_policy, find_preset
from batchgen.runtime.core import MAX_PASSES, Runtime
from batchgen.sequence import Status, Table

NAMES = tuple(PRESETS)
LARGE_HOST = 10_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """stages: (follow-up tokens, output, wait in ps) of each further stage."""

    prompt: int
    budget: int
    output: int
    arrival: int = 0
    group: int = -1  # rows of one group share the first `shared` tokens
    shared: int = 0
    stages: tuple[tuple[int, int, int], ...] = ()

    @property
    def total(self) -> int:
        return self.output + sum(output for _, output, _ in self.stages)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One load on one plan. `troubles` are (kind, at_ps, number, number). roles: per engine, or
    empty."""

    preset: str
    rows: tuple[Row, ...]
    engines: int = 1
    ranks: int = 1
    roles: tuple[str, ...] = ()
    devices: int = 1
    engines_per_node: int = 1
    hbm_pages: int = 40
    host_pages: int = 0
    page: int = 4
    boundary: int = 8
    budget: int = 64
    seqs: int = 8
    depth: int = 1
    prefix: bool = False
    advised: bool = True
    troubles: tuple[tuple[str, int, int, int], ...] = ()
    overrides: dict[str, str] = field(default_factory=dict)
    copy_ps: int = 170
    bad_copies: int = 0  # every so many copies fail

    def plan(self) -> Plan:
        roles = self.roles or ("both",) * self.engines
        return Plan(
            page_tokens=self.page,
            boundary=self.boundary,
            engines=tuple(
                EngineSpec(
                    engine=index,
                    node=index // self.engines_per_node,
                    num_ranks=self.ranks,
                    hbm_pages=self.hbm_pages,
                    host_pages=self.host_pages,
                    role=roles[index],
                )
                for index in range(self.engines)
            ),
            token_budget=self.budget,
            max_num_seqs=self.seqs,
            max_context=100_000,
            depth=self.depth,
        )

    def page_keys(self) -> Callable[[int], list[int]]:
        def keys(row: int) -> list[int]:
            one = self.rows[row]
            full, shared = one.prompt // self.page, min(one.shared, one.prompt) // self.page
            if one.group < 0:
                shared = 0
            private = range(1_000_000 + row * 1000, 1_000_000 + row * 1000 + full - shared)
            return [*range(one.group * 1000, one.group * 1000 + shared), *private]

        return keys

    def bodies(self) -> BodyFactory | None:
        """Bodies that go through the stages of their rows; None when no row has any."""
        if not any(row.stages for row in self.rows):
            return None
        return lambda sequence: staged(sequence, self.rows[sequence.row].stages)

    def advisor(self) -> ToyAdvisor:
        home = ToyCost(self.ranks, copy_ps=self.copy_ps)
        return ToyAdvisor(home, self.hbm_pages, self.page)

    def runtime(self, **options: Any) -> Runtime:
        table = Table([row.prompt for row in self.rows], [row.budget for row in self.rows])
        options.setdefault("bodies", self.bodies())
        return Runtime(
            table,
            self.plan(),
            build_policy(find_preset(self.preset), self.overrides),
            page_keys=self.page_keys() if self.prefix else None,
            advisor=self.advisor() if self.advised else None,
            **options,
        )


def staged(sequence: SequenceView, stages: tuple[tuple[int, int, int], ...]) -> Any:
    """A body whose every stage is followed by the next, after its wait."""
    from batchgen.coroutine import DECODE, Outcome

    outcome = yield DECODE
    while True:
        if outcome is Outcome.FINISHED and sequence.stage < len(stages):
            tokens, output, wait_ps = stages[sequence.stage]
            if wait_ps:
                outcome = yield Wait(wait_ps / 1e12)
            else:
                outcome = yield Extend(tokens, output)
        elif outcome is Outcome.WOKEN:
            tokens, output, _ = stages[sequence.stage]
            outcome = yield Extend(tokens, output)
        elif outcome is Outcome.FINISHED:
            return
        else:
            outcome = yield DECODE


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
            "clocks": [(engine.q, engine.k, engine.layout) for engine in engines],
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


# -- compositions ---------------------------------------------------------------------------------


def swaps() -> list[tuple[str, dict[str, str]]]:
    """Every preset with every single slot swapped for every part (and as it is)."""
    found: list[tuple[str, dict[str, str]]] = []
    for name in NAMES:
        found.append((name, {}))
        for slot, parts in PARTS.items():
            found += [
                (name, {f"{slot}.part": part})
                for part in parts
                if PRESETS[name].parts[slot] != part and part != "oracle"
            ]
    return found


def products() -> list[tuple[str, dict[str, str]]]:
    """Every composition of all parts of the slots that shape a step."""
    slots = [slot for slot in PARTS if slot not in ("predictor",)]
    return [
        ("vllm", {f"{slot}.part": part for slot, part in zip(slots, choice, strict=True)})
        for choice in itertools.product(*(PARTS[slot] for slot in slots))
    ]


# -- random cases ---------------------------------------------------------------------------------

SPAN_PS = 1_500_000
"""About as long as a small case takes."""
TROUBLES = ("slow", "lost", "back", "notice", "cancel", "row_failed", "pool_short", "plan")


def random_case(
    rng: random.Random,
    composition: tuple[str, dict[str, str]],
    *,
    kinds: tuple[str, ...] = TROUBLES,
    most_rows: int = 24,
) -> Case:
    """A case of a composition: arrivals, troubles, roles, stages, prefixes, scarce memory."""
    preset, overrides = composition
    overrides = dict(overrides)
    if overrides.get("order.part") == "by-prompt":
        overrides["order.threshold_tokens"] = str(rng.choice((4, 16)))
        overrides["order.long_share"] = str(rng.choice((0.3, 0.5, 0.8)))
    late = rng.random() < 0.5
    staged_rows = rng.random() < 0.3
    longest = rng.choice((8, 40, 60))
    rows = tuple(
        _random_row(rng, longest, late, staged_rows) for _ in range(rng.randint(1, most_rows))
    )
    roles = rng.choice(
        [("both",)] * 2
        + [("both",) * 2, ("both",) * 3]
        + [("prefill", "decode"), ("prefill", "prefill", "decode", "decode")]
    )
    page = rng.choice((1, 2, 4, 8))
    hbm = rng.randint(4, 60) * max(1, 8 // page)
    devices = rng.choice((1, 1, 2))
    troubles = tuple(
        (rng.choice(kinds), rng.randint(0, SPAN_PS), rng.randint(0, 63), rng.randint(0, 63))
        for _ in range(rng.randint(0, 4) if kinds and rng.random() < 0.6 else 0)
    )
    return Case(
        preset=preset,
        overrides=overrides,
        rows=rows,
        engines=len(roles),
        roles=roles,
        ranks=rng.choice((1, 1, 2, 3)),
        devices=devices,
        engines_per_node=rng.choice((1, 2)),
        hbm_pages=hbm,
        host_pages=rng.choice((0, hbm // 2, LARGE_HOST)),
        page=page,
        boundary=rng.choice((2, 5, 16)),
        budget=rng.choice((4, 16, 64, 200)),
        seqs=rng.choice((2, 8, 64)),
        depth=rng.choice((1, 2)),
        prefix=rng.random() < 0.3,
        advised=rng.random() < 0.7,
        troubles=troubles,
        copy_ps=rng.choice((10, 170, 3000)),
        bad_copies=rng.choice((0, 0, 4)),
    )


def _random_row(rng: random.Random, longest: int, late: bool, staged_rows: bool) -> Row:
    prompt, budget = rng.randint(1, longest), rng.randint(1, longest)
    group = rng.randint(-1, 2)
    stages: tuple[tuple[int, int, int], ...] = ()
    if staged_rows and rng.random() < 0.5:
        stages = tuple(
            (rng.randint(1, 12), rng.randint(1, 12), rng.choice((0, 0, 1, 30_000, 400_000)))
            for _ in range(rng.randint(1, 2))
        )
    return Row(
        prompt=prompt,
        budget=budget,
        output=rng.randint(1, budget),
        arrival=rng.choice((0, rng.randint(0, SPAN_PS))) if late else 0,
        group=group,
        shared=rng.randint(0, prompt) if group >= 0 else 0,
        stages=stages,
    )


def simpler(case: Case) -> list[Case]:
    """Cases that are a little smaller, for finding the smallest that fails."""
    several = range(len(case.rows)) if len(case.rows) > 1 else ()
    found = [replace(case, rows=case.rows[:at] + case.rows[at + 1 :]) for at in several]
    for index in range(len(case.troubles)):
        troubles = case.troubles[:index] + case.troubles[index + 1 :]
        found.append(replace(case, troubles=troubles))
    if case.bad_copies:
        found.append(replace(case, bad_copies=0))
    if case.prefix:
        found.append(replace(case, prefix=False))
    if case.depth == 2:
        found.append(replace(case, depth=1))
    if case.advised:
        found.append(replace(case, advised=False))
    if case.ranks > 1:
        found.append(replace(case, ranks=case.ranks - 1))
    if case.engines > 1 and not (case.roles and case.roles[0] != "both"):
        engines = case.engines - 1
        found.append(replace(case, engines=engines, roles=("both",) * engines))
    for index, row in enumerate(case.rows):
        if row.stages:
            plain = replace(row, stages=())
            found.append(replace(case, rows=(*case.rows[:index], plain, *case.rows[index + 1 :])))
    return found


__all__ = ["MAX_PASSES", "Case", "Outcome", "Row", "Status", "build", "run"]
