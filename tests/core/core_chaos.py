"""A backend whose times are dice: passes, copies and switches take any time and often end together,
steps are cut at random, copies and switches fail, and answers come too late."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from core_cases import Case, schedule

from batchgen import actions as act
from batchgen import events as ev
from batchgen.check.toy import ToyCost
from batchgen.check.walker import Walker
from batchgen.log import Entry
from batchgen.runtime.core import Runtime

STALE = 99
"""An epoch that no short run reaches: a step that nobody asked for."""
SPAN = 400
KINDS = (
    "lost",
    "back",
    "notice",
    "slow",
    "cancel",
    "row_failed",
    "pool_short",
    "plan",
    "cut",
    "stale",
)


class Dice(ToyCost):
    """Every duration is a small random number."""

    def __init__(self, num_ranks: int, dice: random.Random) -> None:
        super().__init__(num_ranks)
        self.dice = dice

    def time_ps(self, loads: Sequence[Sequence[int]]) -> int:
        return self.dice.randint(4, 9)  # (no pass takes no time, even at 0.3 of its time)

    def copy_ps(self, tokens: int, link: Any) -> int:
        return self.dice.randint(1, 20)

    def switch_ps(self) -> int:
        return self.dice.randint(1, 20)


class Chaos(Walker):
    """Runs a case with random times, troubles and failures; everything depends on the seed."""

    def __init__(
        self, case: Case, seed: int, checker: Callable[[Runtime, Entry], None] | None = None
    ) -> None:
        self.dice = random.Random(seed)
        runtime = case.runtime()
        super().__init__(
            runtime,
            case.plan(),
            [row.output for row in case.rows],
            cost=lambda layout: Dice(
                case.ranks if layout == "home" else max(1, case.ranks // 2), self.dice
            ),
            stages={
                index: [output for _, output, _ in row.stages]
                for index, row in enumerate(case.rows)
                if row.stages
            },
            observer=None if checker is None else lambda entry: checker(runtime, entry),
        )
        self.copy_fails = lambda copy_id: self.dice.random() < 0.2
        coming = list(range(len(case.rows)))
        time = 0
        while coming:
            count = self.dice.randint(1, len(coming))
            self.event(ev.Arrived(coming[:count]), time)
            coming, time = coming[count:], time + self.dice.choice((0, 5, 60))
        self.event(ev.InputClosed(), time)
        for _ in range(self.dice.randint(0, 6)):
            self.trouble(case, self.dice.choice(KINDS), self.dice.randint(0, SPAN))
        for engine in range(case.engines):
            for gpu in range(case.devices):  # only devices that never came back hold things up
                self.at(50 * SPAN, ev.DEVICE, 0, lambda one=engine, two=gpu: self.back(one, two))

    def trouble(self, case: Case, kind: str, time: int) -> None:
        one, two = self.dice.randint(0, 63), self.dice.randint(0, 63)
        if kind == "cut":
            device = self.devices[one % case.engines]

            def cut() -> None:
                if device.step is not None:
                    device.composition.cut(begun=not device.waits)

            self.at(time, ev.DEVICE, 0, cut)
        elif kind == "stale":
            self.event(ev.CopiesDone(10_000), time)
            self.event(ev.Timer(10_000), time)
            self.event(ev.Landed(one % case.engines, 1, STALE, [], 0, "cut"), time)
        else:
            schedule(self, case, kind, time, one, two)

    def switch(self, action: act.Switch) -> None:
        if self.dice.random() < 0.7:
            super().switch(action)
            return
        device = self.devices[action.engine]
        device.composition.clear()
        life = device.life

        def failed() -> None:
            if device.life == life:
                self.tell(ev.LayoutFailed(action.engine, action.epoch))

        self.at(self.now + self.dice.randint(1, 20), ev.DEVICE, 0, failed)
