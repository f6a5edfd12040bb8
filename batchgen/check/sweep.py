"""Many random cases of one subject; the first fault, in the smallest case that shows it, and what
to change. Determinism over processes is `batchgen.check.again`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from batchgen.check.case import Case
from batchgen.check.declared import faults
from batchgen.check.examine import Fault, agrees, examine
from batchgen.check.loads import in_bursts, longer, random_case, scarcer
from batchgen.check.shrink import smallest
from batchgen.check.subjects import Subject
from batchgen.check.watch import told
from batchgen.errors import UserError
from batchgen.oneline import shown

MOST_ROWS = 16
LONGER = 32
SHRINK_S = 20.0
TRIES = 3

REMEDIES = {
    "declaration": "declare what the part does",
    "exception": "no call may raise; check what it reads at that moment",
    "answer": "answer what batchgen/policy/base.py says for that method",
    "purity": "a part only reads; let it answer, and the runtime will write",
    "state": "engines share the object; what is to be remembered is read from the table, or kept "
    "in the state of a predictor (new_state)",
    "determinism": "decide from the arguments alone: no clock, no randomness, no order of a set",
    "liveness": "rows must get their turn: look at what the part refuses for ever",
    "hangs": "look for a loop without an end; --timeout-s gives a slow part more time",
    "runtime": "look at what the part answered; if that was right, it is a bug in batchgen",
}
NO_DECLARATION = (
    "no declaration helps: it counts calls, or reads what a launched step changes before its "
    "report (produced, computed, offset and pages of rows that decode, clocks of engines)"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One property that does not hold. number: which of the cases showed it first, from 1; case: as
    small as it got, None where no case is needed."""

    kind: str
    slot: str
    text: str
    remedy: str
    case: Case | None = None
    number: int = 0


def cases(subject: Subject, count: int, seed: int) -> Iterator[Case]:
    """Random cases: every preset with the part in turn, then beside any other part."""
    rng = random.Random(seed)
    first, others = subject.compositions()
    for number in range(count):
        composition = first[number] if number < len(first) else rng.choice(others)
        case = random_case(random.Random(rng.randrange(1 << 30)), composition, most_rows=MOST_ROWS)
        if rng.random() < 0.4:
            case = in_bursts(case, rng)
        if rng.random() < 0.5:
            case = scarcer(case, rng.uniform(0.1, 0.6))
        yield longer(case, LONGER) if rng.random() < 0.25 else case


def guarded(subject: Subject, check: Callable[[], Finding | None]) -> Finding | None:
    """What a check finds; a subject that breaks the check itself is found out too."""
    try:
        return check()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        (slot, *more) = subject.parts
        text = f"checking it raised {told(error)}"
        remedy = REMEDIES["runtime"]
        return Finding(kind="runtime", slot="" if more else slot, text=text, remedy=remedy)


def sweep(subject: Subject, count: int, seed: int) -> Finding | None:
    """Declarations, then `count` cases; the first finding ends it."""
    for slot, cls in subject.parts.items():
        for text in faults(cls):
            return Finding(kind="declaration", slot=slot, text=text, remedy=REMEDIES["declaration"])
    for number, case in enumerate(cases(subject, count, seed), start=1):
        fault = examine(subject, case)
        if fault is not None:
            return explain(subject, case, fault, number)
    return None


def one_case(subject: Subject, case: Case) -> Finding | None:
    """One case that is given, as it is."""
    fault = examine(subject, case)
    return explain(subject, case, fault, shrinks=False) if fault is not None else None


def explain(
    subject: Subject, case: Case, fault: Fault, number: int = 0, *, shrinks: bool = True
) -> Finding:
    """The finding of a fault: its case made small, its remedy tried."""
    tries = TRIES if fault.kind == "determinism" else 1

    def fails(candidate: Case) -> bool:
        nonlocal fault
        for _ in range(tries):
            found = examine(subject, candidate)
            if found is not None and (found.kind, found.slot) == (fault.kind, fault.slot):
                fault = found
                return True
        return False

    shrinks = shrinks and fault.kind != "hangs"  # every try would take its whole time
    small = smallest(case, fails, limit_s=SHRINK_S) if shrinks else case
    slot, remedy = fault.slot, REMEDIES.get(fault.kind, "")
    if fault.kind == "agreement":
        slot, remedy = declaration_for(subject, [small, case])
    if not slot and len(subject.parts) == 1:
        (slot,) = subject.parts
    return Finding(
        kind=fault.kind, slot=slot, text=fault.text, remedy=remedy, case=small, number=number
    )


def declaration_for(subject: Subject, failing: list[Case]) -> tuple[str, str]:
    """(slot, remedy): the weakest declaration of one part with which these cases agree."""
    for changes in ("finish", "pass"):
        for slot, cls in subject.parts.items():
            if cls.changes == changes:
                continue
            if all(agrees(subject, case, {slot: changes}) for case in failing):
                was = f"changes = {shown(cls.changes)}"
                return slot, f"it declares {was}; with {changes!r} the case agrees: declare that"
    return "", NO_DECLARATION


def brief(case: Case) -> dict[str, object]:
    """A case as data, without what has its default; `Case` reads it again."""
    found: dict[str, object] = {"preset": case.preset}
    for field in fields(case):
        value = getattr(case, field.name)
        if field.name == "rows":
            value = [
                {one.name: v for one in fields(row) if (v := getattr(row, one.name)) != one.default}
                for row in case.rows
            ]
        elif value == field.default or value == {}:
            continue
        found[field.name] = value
    return found
