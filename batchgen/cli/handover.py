"""What a simulation must be told to go as the executor went: taken from the executor's log.

How many tokens each stage of a row came to, why it ended, and what bodies asked for, which they
may have read from text. When anything happens is for the simulator to find out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen import events as ev
from batchgen.bodies import Said
from batchgen.log import Entry, read_log

if TYPE_CHECKING:
    from batchgen.sequence import Table

NEVER_SHOWN = 1 << 30
"""The length of a stage that did not come to its end: its budget cuts it."""


@dataclass(slots=True, kw_only=True)
class Handover:
    """lengths, reasons: output tokens of a row's stage (from 0) and why it ended, for stages that
    ended. script: what bodies asked for."""

    lengths: dict[tuple[int, int], int] = field(default_factory=dict)
    reasons: dict[tuple[int, int], str] = field(default_factory=dict)
    script: list[Said] = field(default_factory=list)

    def first(self, table: Table) -> list[int]:
        """Lengths of the first stages of a table's rows; the budget where it is not known."""
        budgets = table.budget.tolist()
        return [self.lengths.get((row, 0), most) for row, most in enumerate(budgets)]

    def further(self, row: int, stage: int) -> int:
        """The length of a further stage."""
        return self.lengths.get((row, stage), NEVER_SHOWN)


def handover(lines: Iterable[str]) -> Handover:
    """What the full log of a run tells. Raises UserError if it is none."""
    found = Handover()
    stage: dict[int, int] = {}
    before: dict[int, int] = {}  # tokens produced in earlier stages
    for item in read_log(lines):
        if not isinstance(item, Entry):
            continue
        if isinstance(item.event, ev.Landed | ev.Drained):
            for row, produced, reason in item.event.finished:
                key = row, stage.get(row, 0)
                found.lengths[key] = produced - before.get(row, 0)
                found.reasons[key] = reason
        said = item.said or []
        found.script += said
        asked = {one.row: one.budget for one in said if one.what == "extend"}
        for action in item.actions:
            if isinstance(action, act.Extend):
                stage[action.row] = stage.get(action.row, 0) + 1
                before[action.row] = action.budget - asked[action.row]
    return found
