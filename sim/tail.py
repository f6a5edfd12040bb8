"""Where the last 10 % of a run come from: the time of its last row, taken apart by cause and held
against rows that ended just before. It reads what was recorded, and decides nothing.

docs/simulation.md defines the causes. Every moment from a row's arrival to its end has one; the
causes of which the last row has had more share the tail, in proportion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchgen.cost.api import FloatArray, IntArray, PassDetail, PassLoad
from batchgen.report.tail import CAUSES
from batchgen.sim.faults import NORMAL_SPEED, Fault, Troubles
from batchgen.sim.idle import Idle
from batchgen.sim.recorder import LOST, RAN_ON, SWITCHED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batchgen.cost.api import CostModel
    from batchgen.plan import Plan

Parts = dict[str, float]

MOST_COMPARED = 64
"""Rows that the last one is held against; of more, so many evenly spaced ones."""
BLOCK = 16_384  # steps whose times are computed together

Stint = tuple[int, int, int, int]


def tail_causes_s(
    rows: Mapping[str, Any],
    steps: Mapping[str, Any],
    stints: Sequence[Stint],
    faults: Sequence[Fault],
    totals: tuple[Mapping[str, Any], PassLoad],
    cost: CostModel,
    plan: Plan,
    group: tuple[int, int],
) -> Parts:
    """Seconds per cause; they add up to the time from the end of 90 % of the rows to the end of
    all. Empty: there is no tail. totals: `Recorder.mean_loads`; group: GPUs of an engine or
    pipeline, and engines of a pipeline (1 without)."""
    ends = rows["end_ps"]
    order = np.flatnonzero(ends >= 0)
    order = order[np.argsort(ends[order], kind="stable")]
    count = len(order)
    done = (count * 9 + 9) // 10
    if not count or ends[order[-1]] == ends[order[done - 1]]:
        return {}
    tail = int(ends[order[-1]] - ends[order[done - 1]])
    before = order[count * 8 // 10 : done]
    if len(before) > MOST_COMPARED:
        before = before[np.linspace(0, len(before) - 1, MOST_COMPARED).astype(np.int64)]
    last = int(order[-1])
    told: dict[int, list[Stint]] = {row: [] for row in [last, *before.tolist()]}
    for stint in stints:
        if stint[1] in told:
            told[stint[1]].append(stint)
    run = _Run(steps, faults, totals, cost, plan, group)
    own = run.parts(last, rows, told[last])
    others = [run.parts(row, rows, told[row]) for row in before.tolist()]
    more = {
        cause: max(0.0, own[cause] - sum(one[cause] for one in others) / len(others))
        for cause in CAUSES
    }
    total = sum(more.values())
    if not total:  # it had nothing more than others, which began sooner
        return {cause: tail / 1e12 if cause == "other_rows" else 0.0 for cause in CAUSES}
    return {cause: tail * part / total / 1e12 for cause, part in more.items()}


def speeds_of(
    faults: Sequence[Fault], num_engines: int, group: tuple[int, int]
) -> list[list[tuple[int, int]]]:
    """(time, pass time in thousandths of normal) of every engine from each change on; 0: lost."""
    gpus, batches = group
    troubles = [Troubles(gpus) for _ in range(num_engines // batches)]
    lost: list[set[int]] = [set() for _ in troubles]
    found: list[list[tuple[int, int]]] = [[(0, NORMAL_SPEED)] for _ in range(num_engines)]
    for fault in faults:
        if fault.kind not in ("slow", "lost", "back"):
            continue  # no slow device
        number, gpu = divmod(fault.gpu, gpus)
        if fault.kind == "slow":
            troubles[number].change(gpu, fault)
        elif fault.kind == "lost":
            lost[number].add(gpu)
        elif fault.kind == "back":
            lost[number].discard(gpu)
        speed = 0 if lost[number] else troubles[number].speed
        for engine in range(number * batches, (number + 1) * batches):
            if found[engine][-1][1] != speed:
                found[engine].append((fault.at_ps, speed))
    return found


@dataclass(slots=True)
class _Engine:
    """The steps of an engine in time order, each divided: rates are parts of its duration."""

    start: FloatArray
    end: FloatArray
    slow: FloatArray
    barrier: FloatArray
    alone: FloatArray  # what the passes would take with one row alone
    company: FloatArray  # what other rows in them add
    idle_part: FloatArray  # part of the other engines that has nothing to do
    idle_any: FloatArray  # part of the time in which some other engine has nothing to do
    free_pages: FloatArray
    seats_full: NDArray[np.bool_]
    troubled_ps: float  # when its first trouble came
    down: list[tuple[int, int]]


class _Run:
    def __init__(
        self,
        steps: Mapping[str, Any],
        faults: Sequence[Fault],
        totals: tuple[Mapping[str, Any], PassLoad],
        cost: CostModel,
        plan: Plan,
        group: tuple[int, int],
    ) -> None:
        self.cost, self.plan = cost, plan
        self.speeds = speeds_of(faults, len(plan.engines), group)
        first: dict[int, int] = {}  # trouble of an engine or pipeline, notices too
        for fault in faults:
            first.setdefault(fault.gpu // group[0], fault.at_ps)
        start = steps["start_ps"].astype(np.float64)
        span = np.maximum(steps["duration_ps"].astype(np.float64), 1.0)
        even, alone = even_and_alone(cost, *totals)
        self.idle = Idle(steps, [spec.role != "prefill" for spec in plan.engines], self.speeds)
        self.engines: list[_Engine] = []
        for spec in plan.engines:
            mine = np.flatnonzero(steps["engine"] == spec.engine)
            mine = mine[np.argsort(start[mine], kind="stable")]
            begin, end = start[mine], start[mine] + span[mine]
            changes = self.speeds[spec.engine]
            at = np.searchsorted([time for time, _ in changes], begin, side="right") - 1
            speed = np.array([max(one, 1) for _, one in changes], dtype=np.float64)[at]
            factor = np.maximum(speed / NORMAL_SPEED, 1.0)
            healthy = 1.0 / factor
            part = np.minimum(even[mine] / span[mine], healthy)
            barrier = healthy - part if cost.num_ranks > 1 else np.zeros(len(mine))
            healthy = healthy - barrier
            single = np.minimum(alone[mine] / span[mine], healthy)
            idle_part, idle_any = self.idle.of(begin, end)
            pages = spec.hbm_pages * spec.num_ranks - steps["kv_pages"][mine]
            seats = plan.max_num_seqs * spec.num_ranks
            self.engines.append(
                _Engine(
                    start=begin,
                    end=end,
                    slow=1.0 - 1.0 / factor,
                    barrier=barrier,
                    alone=single,
                    company=healthy - single,
                    idle_part=idle_part,
                    idle_any=idle_any,
                    free_pages=pages / spec.num_ranks,
                    seats_full=steps["running"][mine] >= seats,
                    troubled_ps=float(first.get(spec.engine // group[1], 1 << 62)),
                    down=_down(changes),
                )
            )

    def parts(self, row: int, rows: Mapping[str, Any], stints: Sequence[Stint]) -> Parts:
        """Picoseconds of each cause between a row's arrival and its end."""
        found = dict.fromkeys(CAUSES, 0.0)
        tokens = int(rows["prompt_tokens"][row] + rows["output_tokens"][row])
        need = -(-tokens // self.plan.page_tokens)
        for begin, end, engine, kind in self._spans(row, rows, stints):
            if kind in CAUSES:
                found[kind] += end - begin
            elif engine >= 0 and end > begin:
                self._add(found, self.engines[engine], begin, end, need, kind == "decode")
        return found

    def _spans(
        self, row: int, rows: Mapping[str, Any], stints: Sequence[Stint]
    ) -> Iterator[tuple[int, int, int, str]]:
        """(begin, end, engine, what): it waits, its prompt runs, it decodes, or a cause."""
        arrival, first, end = (int(rows[f"{n}_ps"][row]) for n in ("arrival", "first_token", "end"))
        engine = stints[0][2] if stints else int(rows["engine"][row])
        if first < 0:
            yield arrival, end, engine, "wait"
            return
        prompt = int(rows["prompt_tokens"][row]) - int(rows["adopted_tokens"][row])
        own = min(int(self.cost.recompute_ps(max(prompt, 1))), first - arrival)
        yield arrival, first - own, engine, "wait"
        yield first - own, first, engine, "long_rows"
        at, what, is_running = first, RAN_ON, True
        for time, _, where, change in stints:
            time = min(max(time, at), end)
            if is_running:
                yield at, time, engine, "decode"
            else:
                yield at, time, engine, self._gap(engine, where, what, at)
            is_running, what, at, engine = change == RAN_ON, change, time, where
        if is_running:
            yield at, end, engine, "decode"
        else:
            yield at, end, engine, self._gap(engine, engine, what, at)

    def _gap(self, engine: int, to_engine: int, what: int, at: int) -> str:
        """The cause of a time between two stints of a row."""
        if what == LOST or (engine != to_engine and at >= self.engines[engine].troubled_ps):
            return "slow_devices"
        if what == SWITCHED:
            return "other_rows"
        return "memory" if engine == to_engine else "imbalance"

    def _add(
        self, found: Parts, engine: _Engine, begin: int, end: int, need: int, decodes: bool
    ) -> None:
        low = int(np.searchsorted(engine.end, begin, side="right"))
        high = int(np.searchsorted(engine.start, end, side="left"))
        part = slice(low, high)
        begins, ends = engine.start[part], engine.end[part]
        inside = np.maximum(np.minimum(ends, end) - np.maximum(begins, begin), 0.0)
        found["slow_devices"] += float((inside * engine.slow[part]).sum())
        found["barrier"] += float((inside * engine.barrier[part]).sum())
        company = inside * engine.company[part]
        if decodes:
            found["long_rows"] += float((inside * engine.alone[part]).sum())
            uneven = company * engine.idle_part[part]
            rest = company - uneven
            short = np.zeros(len(rest))
        else:
            company = company + inside * engine.alone[part]
            uneven = company * engine.idle_any[part]
            rest = company - uneven
            full = (engine.free_pages[part] < need) | engine.seats_full[part]
            short = np.where(full, rest, 0.0)
        # What others could take over from an engine that was in trouble is the trouble's.
        troubled = begins >= engine.troubled_ps
        found["slow_devices"] += float(uneven[troubled].sum())
        found["imbalance"] += float(uneven[~troubled].sum())
        found["memory"] += float(short.sum())
        found["other_rows"] += float((rest - short).sum())
        gap = end - begin - float(inside.sum())
        down = sum(max(0, min(end, up) - max(begin, off)) for off, up in engine.down)
        found["slow_devices"] += min(gap, down)
        found["other_rows"] += max(0.0, gap - down)


def _down(changes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Times in which an engine is lost."""
    until = [time for time, _ in changes[1:]] + [1 << 62]
    return [(at, end) for (at, speed), end in zip(changes, until, strict=True) if not speed]


def even_and_alone(
    cost: CostModel, sums: Mapping[str, IntArray], load: PassLoad
) -> tuple[FloatArray, FloatArray]:
    """Per step in ps: its passes with their load spread evenly over the ranks, as far as whole rows
    can be, and with a single row of its mean context."""
    passes, ranks = sums["passes"], cost.num_ranks
    contexts = sums["context"] // np.maximum(sums["decodes"], 1)
    rows = -(-sums["decodes"] // (np.maximum(passes, 1) * ranks))
    even, alone = np.zeros(len(passes)), np.zeros(len(passes))
    for begin in range(0, len(passes), BLOCK):
        part = slice(begin, min(begin + BLOCK, len(passes)))
        spread = load.window(part.start, part.stop)
        spread.decodes = spread.decodes * 0 + rows[part]
        spread.context = spread.decodes * contexts[part]
        spread.samples = np.maximum(spread.samples, spread.decodes)
        one = PassLoad.zeros(ranks, part.stop - part.start)
        one.decodes[0] = one.samples[0] = sums["decodes"][part] > 0
        one.context[0] = contexts[part] * one.decodes[0]
        alone[part] = _pass_ps(cost, one)
        even[part] = np.maximum(_pass_ps(cost, spread), alone[part])
    return even * passes, alone * passes


def _pass_ps(cost: CostModel, load: PassLoad) -> IntArray:
    return cost.pass_ps(load, PassDetail.even(load) if cost.detailed else None)
