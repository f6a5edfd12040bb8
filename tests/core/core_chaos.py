"""A backend without a clock: whatever is pending happens in any order, and any legal way.

Steps end after any number of passes, copies and switches succeed or fail, devices go and come,
pools shrink. It keeps its own count of produced tokens, so that the table's can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from core_cases import Case
from core_invariants import STALE
from core_toy import ToyAdvisor, ToyCost

from batchgen import actions as act
from batchgen import events as ev
from batchgen.log import Entry
from batchgen.policy.presets import build_policy, find_preset
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table
from batchgen.step import Step, unroll


class Chaos:
    """Feeds a runtime one random legal event after another until nothing can happen any more."""

    def __init__(
        self, case: Case, seed: int, checker: Callable[[Runtime, Entry], None] | None = None
    ) -> None:
        self.case, self.checker = case, checker
        self.random = random.Random(seed)
        self.table = Table([row.prompt for row in case.rows], [row.budget for row in case.rows])
        home = ToyCost(case.ranks)
        self.runtime = Runtime(
            self.table,
            case.plan(),
            build_policy(find_preset(case.preset), case.overrides),
            page_keys=case.page_keys() if case.prefix else None,
            advisor=ToyAdvisor(home, lambda layout: ToyCost(max(1, case.ranks // 2))),
        )
        self.tokens = [0] * len(case.rows)
        self.coming = list(range(len(case.rows)))
        self.running: list[list[int]] = [[] for _ in range(case.engines)]
        self.flying: dict[int, Step] = {}
        self.copies: dict[int, int] = {}  # copy -> engine
        self.switches: dict[int, int] = {}  # engine -> epoch
        self.dead: set[int] = set()
        self.draining: set[int] = set()
        self.reasons: dict[int, str] = {}
        self.entries: list[Entry] = []
        self.troubles = 6

    def run(self) -> None:
        while (options := self.options()) or self.dead or self.draining:
            if not options:  # only devices that never came back hold things up
                self.back(min(self.dead | self.draining))
            else:
                self.random.choice(options)()

    def options(self) -> list[Callable[[], None]]:
        options: list[Callable[[], None]] = []
        if self.coming:
            options.append(self.arrive)
        options += [lambda engine=engine: self.end_step(engine) for engine in self.flying]
        options += [lambda copy=copy: self.end_copy(copy) for copy in self.copies]
        options += [lambda engine=engine: self.end_switch(engine) for engine in self.switches]
        if options and self.troubles and self.random.random() < 0.15:
            self.troubles -= 1
            return [self.trouble]
        return options

    def tell(self, event: ev.Event) -> None:
        now = len(self.entries)
        entry = Entry(now, event, self.runtime.on(event, now))
        self.entries.append(entry)
        for action in entry.actions:
            if type(action) is Step:
                self.flying[action.engine] = action
            elif type(action) is act.Copy:
                assert all(tokens >= 0 for tokens in action.tokens)
                self.copies[action.copy_id] = action.engine
            elif type(action) is act.Switch:
                self.switches[action.engine] = action.epoch
            elif type(action) is act.Finished:
                assert action.row not in self.reasons
                self.reasons[action.row] = action.reason
            elif type(action) is act.Failed:
                assert action.row not in self.reasons
                self.reasons[action.row] = action.code
        if self.checker is not None:
            self.checker(self.runtime, entry)

    def arrive(self) -> None:
        count = self.random.randint(1, len(self.coming))
        rows, self.coming = self.coming[:count], self.coming[count:]
        self.tell(ev.Arrived(rows))
        if not self.coming:
            self.tell(ev.InputClosed())

    def end_step(self, engine: int, *, failed: bool = False) -> None:
        step = self.flying.pop(engine)
        most = self.random.randint(0 if failed else 1, step.n)
        finished: list[ev.Finish] = []
        walker = unroll(step, self.running[engine])
        after = [row for row in self.running[engine] if row not in step.left] + step.joined
        ended: list[int] | None = None
        passes = 0
        while passes < most:
            try:
                one = walker.send(ended)  # type: ignore[arg-type]
            except StopIteration:
                break
            lasts = [row for row, _, _, last in one.chunks if last]
            ended = []
            for row in [*one.decodes, *lasts]:
                self.tokens[row] += 1
                if self.tokens[row] == self.case.rows[row].output:
                    ended.append(row)
            finished += [(row, passes, "stop") for row in ended]
            after = [row for row in [*one.decodes, *lasts] if row not in ended]
            passes += 1
        self.running[engine] = after
        by = "failed" if failed else "n" if passes == step.n else "cut"
        self.tell(ev.StepDone(engine, step.epoch, step.q0, passes, sorted(finished), passes, by))

    def end_copy(self, copy: int) -> None:
        del self.copies[copy]
        good = self.random.random() < 0.8
        self.tell(ev.CopiesDone(copy) if good else ev.CopiesFailed(copy))

    def end_switch(self, engine: int) -> None:
        epoch = self.switches.pop(engine)
        good = self.random.random() < 0.7
        self.tell(ev.LayoutReady(engine, epoch) if good else ev.LayoutFailed(engine, epoch))

    def back(self, engine: int) -> None:
        self.dead.discard(engine)
        self.draining.discard(engine)
        self.tell(ev.DeviceBack(engine))

    def lose(self, engine: int) -> None:
        if engine in self.flying and self.random.random() < 0.5:
            self.end_step(engine, failed=True)
        self.flying.pop(engine, None)
        self.switches.pop(engine, None)
        self.copies = {copy: owner for copy, owner in self.copies.items() if owner != engine}
        self.running[engine] = []
        self.dead.add(engine)
        self.draining.discard(engine)
        self.tell(ev.DeviceLost(engine))

    def trouble(self) -> None:
        pick = self.random
        engine = pick.randrange(self.case.engines)
        row = pick.randrange(len(self.case.rows))
        rank = pick.randrange(self.case.ranks)
        kind = pick.choice(
            ["lose", "notice", "back", "cancel", "fail", "short", "timer", "plan", "stale"]
        )
        if kind == "lose" and engine not in self.dead:
            self.lose(engine)
        elif kind == "notice" and engine not in self.dead:
            self.draining.add(engine)
            self.tell(ev.DeviceNotice(engine, 0))
        elif kind == "back" and engine in self.dead | self.draining:
            self.back(engine)
        elif kind == "cancel":
            self.tell(ev.Cancelled([row]))
        elif kind == "fail":
            self.tell(ev.RowFailed(row, "bad"))
        elif kind == "short":
            self.tell(ev.PoolShort(engine, rank, pick.randint(1, 10)))
        elif kind == "timer":
            self.tell(ev.Timer(7))
        elif kind == "plan":
            self.tell(ev.PlanChanged(pick.randint(1, 64), pick.randint(1, 8)))
        elif kind == "stale":  # answers that come too late are no harm
            self.tell(ev.CopiesDone(10_000))
            self.tell(ev.StepDone(engine, STALE, 0, 0, [], 0, "cut"))
