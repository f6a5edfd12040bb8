"""Slow, healed and lost engines against the bars of docs/stragglers.md: prints a table, exits
with 1 when one does not hold. It simulates; no clock of this machine is read.

    python benchmarks/stragglers.py [--seeds 3] [--rows 4000] [--engines 16]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from straggler_runs import Load, Outcome, capacity_time_s, run, slow
from straggling_rows import table as table_of_running

from batchgen.sim.faults import Fault
from batchgen.sim.setup import set_up
from batchgen.trace.devices.compose import compose
from batchgen.trace.devices.events import Trouble
from batchgen.units import to_ps

SLOW = 2.0
AROUND_BCT, AROUND_LOSS = 1.05, 1.1  # bars of issue 10
ACCIDENT_S = 0.02
FIXED = ("placement.steal", "false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of one run: what was reached may not exceed what is allowed."""

    trouble: str
    what: str
    reached: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.reached <= self.allowed


def bars(load: Load) -> list[Bar]:
    """All bars of one load. The engine in trouble is another one for each seed. `work` is the time
    that the engines of the healthy run spend in passes."""
    healthy = run(load)
    full = float(load.engines)
    less, victim = full - 1 + 1 / SLOW, load.seed % load.engines
    work_s, longest_s = healthy.busy_s, healthy.longest_row_s
    found = [Bar(trouble="none", what="engines taken for slow", reached=healthy.alarms, allowed=0)]

    def held(trouble: str, outcome: Outcome, changes: Sequence[tuple[float, float]]) -> None:
        allowed = AROUND_BCT * capacity_time_s(work_s, changes) + longest_s
        idle = len(outcome.idle_while_rows_wait)
        found.extend(
            (
                Bar(trouble=trouble, what="BCT, s", reached=outcome.bct_s, allowed=allowed),
                Bar(trouble=trouble, what="idle beside rows that wait", reached=idle, allowed=0),
                Bar(trouble=trouble, what="failed rows", reached=outcome.failed_rows, allowed=0),
            )
        )

    always = [slow(0.0, victim, SLOW)]
    fixed = run(replace(load, overrides=(*load.overrides, FIXED)), always)
    moved = run(load, always)
    held("slow from the start", moved, [(0.0, less)])
    if healthy.bct_s * full / less <= fixed.bct_s * 2 / 3:  # else long rows bound both
        found.append(
            Bar(
                trouble="slow from the start",
                what="BCT, s, against 2/3 of fixed placement",
                reached=moved.bct_s,
                allowed=fixed.bct_s * 2 / 3,
            )
        )
    # The others have drained: the last engine but one has ended its last row.
    last = int(np.argmax(healthy.last_end_s))
    drained_s = sorted(healthy.last_end_s)[-2]
    held(
        "slow when others drained",
        run(load, [slow(drained_s, last, SLOW)]),
        [(0.0, full), (drained_s, less)],
    )
    heals_s = healthy.bct_s / 2
    heals = run(load, [slow(0.0, victim, SLOW), slow(heals_s, victim, 1.0)])
    held("slow, heals at half time", heals, [(0.0, less), (heals_s, full)])

    # Two at once: another one turns slow, by more, before the first heals.
    second, again_s = (victim + 1) % load.engines, healthy.bct_s / 4
    two = run(load, [*always, slow(again_s, second, 3.0), slow(heals_s, victim, 1.0)])
    held(
        "two slow, one heals",
        two,
        [(0.0, less), (again_s, less - 1 + 1 / 3), (heals_s, full - 1 + 1 / 3)],
    )
    healed = [slow(heals_s, victim, 1.0), slow(heals_s, second, 1.0)]
    held(
        "two slow, both heal",
        run(load, [*always, slow(0.0, second, 3.0), *healed]),
        [(0.0, less - 1 + 1 / 3), (heals_s, full)],
    )
    found.append(false_alarms(load, healthy))

    lost = run(load, [Fault(to_ps(heals_s), "lost", victim)])
    left_s = (healthy.bct_s - heals_s) / (load.engines - 1)
    again_s = lost.recomputed_at_loss * prompt_token_s(load) / (load.engines - 1)
    found += [
        Bar(
            trouble="lost at half time",
            what="extra BCT, s",
            reached=lost.bct_s - healthy.bct_s,
            allowed=AROUND_LOSS * (left_s + again_s),
        ),
        Bar(
            trouble="lost at half time",
            what="recomputed tokens not of the loss",
            reached=abs(lost.recomputed_at_loss - lost.lost_tokens),
            allowed=0,
        ),
        Bar(trouble="lost at half time", what="failed rows", reached=lost.failed_rows, allowed=0),
    ]
    assert lost.output_tokens == healthy.output_tokens
    return found


def accidents(load: Load, span_s: float) -> list[Trouble]:
    """Passes that take longer on healthy engines now and then: spells of one to three passes in
    20, by 1.2 times a Pareto variable of index 1, at most 20 times as long."""
    rng = random.Random(load.seed)
    troubles = []
    for engine in range(load.engines):
        at_s = 0.0
        while at_s < span_s:
            at_s += ACCIDENT_S + rng.expovariate(1 / (20 * ACCIDENT_S))
            late = round(min(20.0, 1.2 * rng.paretovariate(1.0)) * 1000)
            troubles.append(
                Trouble(to_ps(at_s), "slow", gpu=engine, factor=late, for_ps=to_ps(ACCIDENT_S))
            )
    return troubles


def false_alarms(load: Load, healthy: Outcome) -> Bar:
    """Alarms of healthy engines, of a hundred passes that were timed."""
    shaken = run(load, compose(accidents(load, healthy.bct_s), load.engines, 1), watch=False)
    return Bar(
        trouble="accidents of healthy engines",
        what=f"alarms, % of {shaken.timed} timed passes",
        reached=100 * shaken.alarms / shaken.timed,
        allowed=1.0,
    )


def prompt_token_s(load: Load) -> float:
    """Time of a prompt token in a large pass."""
    cost = set_up(load.job(), load.trace()).machine.planner.home
    return cost.pass_one_ps(0, 0, 8192, 8192**2) / 8192 / 1e12


def table(loads: Sequence[Load], tell: Callable[[str], None]) -> bool:
    """Prints all bars; whether all hold."""
    good = True
    tell(f"{'load':34} {'trouble':26} {'what':40} {'reached':>10} {'allowed':>10}")
    for load in loads:
        name = f"{load.rows} rows, {load.output_tokens:g} out, {load.policy}, seed {load.seed}"
        for bar in bars(load):
            good &= bar.holds
            end = "" if bar.holds else "  MISSED"
            tell(
                f"{name:34} {bar.trouble:26} {bar.what:40} {bar.reached:10.4g} "
                f"{bar.allowed:10.4g}{end}"
            )
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--policy", default="batchgen")
    given = parser.parse_args(arguments)
    loads = [
        Load(engines=given.engines, rows=rows, seed=seed, policy=given.policy)
        for rows in (given.rows, 4 * given.rows)
        for seed in range(given.seeds)
    ]
    good = table(loads, print)
    print()
    good &= table_of_running(given.seeds, given.engines, given.policy, print)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
