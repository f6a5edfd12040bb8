"""All properties of a subject in one case: runs in several ways that must come to the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.check.case import Case
from batchgen.check.clock import another_world
from batchgen.check.limit import TimeUp, time_limit
from batchgen.check.run import Outcome, build
from batchgen.check.subjects import Subject
from batchgen.check.verify import difference, loose_ends, needless_failure
from batchgen.check.walker import Stuck
from batchgen.check.watch import Violation, Watch, told
from batchgen.errors import UserError
from batchgen.oneline import one_line

Changes = Mapping[str, str]
WAYS: dict[str, dict[str, Any]] = {
    "coalesced": {},
    "reference": {"reference": True},
    "three passes at most": {"max_passes": 3},
}
LIMIT = 60_000
"""Events of a small case; an honest one takes a few thousand at most."""
AGAIN = 4


@dataclass(frozen=True)
class Fault:
    """A property that does not hold in a case, of which slot's part ("" unknown), and how."""

    kind: str
    slot: str
    text: str


def run_once(
    subject: Subject,
    case: Case,
    way: str = "coalesced",
    *,
    changes: Changes | None = None,
    compares: bool = False,
    world: int = 0,
) -> Outcome:
    """One run of a case with the subject's parts. Raises Violation."""
    watch = Watch(compares=compares)
    try:
        with another_world(world, subject.modules()), time_limit(subject.limit_s):
            parts = subject.make(watch, changes)
            outcome = build(case, parts=parts, **WAYS[way])
            watch.runtime = outcome.runtime
            outcome.walker.limit = LIMIT
            outcome.walker.run()
            watch.check_memory()
    except (Violation, UserError, KeyboardInterrupt):
        raise
    except TimeUp:
        slot, name = watch.hung
        text = f"{name} had not returned" if name else "the run had not ended"
        text = f"in {way} mode {text} after {subject.limit_s:g} s"
        raise Violation("hangs", slot, text) from None
    except Stuck as error:
        raise Violation("liveness", "", f"in {way} mode: {error}") from None
    except BaseException as error:
        raise Violation("runtime", "", f"in {way} mode the runtime broke: {told(error)}") from error
    problem = loose_ends(outcome) or needless_failure(outcome)
    if problem:
        raise Violation("liveness", "", f"in {way} mode: {problem}")
    return outcome


def examine(subject: Subject, case: Case) -> Fault | None:
    """The first property that does not hold; None: all do."""
    try:
        coalesced = run_once(subject, case, compares=True, world=1)
        if run_once(subject, case, world=2).log != coalesced.log:
            return Fault("determinism", "", "two runs of the same load differ: " + _guess(subject))
        for way in ("reference", "three passes at most"):
            other = run_once(subject, case, way, compares=way == "reference", world=3)
            text = difference(other, coalesced)
            if text:
                return _unequal(subject, case, f"{way} mode and coalesced steps differ: {text}")
    except Violation as found:
        return Fault(found.kind, found.slot, found.text)
    except UserError as error:
        return Fault("declaration", "", one_line(error))
    return None


def _guess(subject: Subject) -> str:
    """A guess at what the code of the parts asks for that it should not."""
    names: set[str] = set()
    for cls in subject.parts.values():
        for function in vars(cls).values():
            code = getattr(function, "__code__", None)
            names |= set(code.co_names) & SUSPECTS if code is not None else set()
    return f"its methods name {', '.join(sorted(names))}" if names else "same events, other actions"


SUSPECTS = {
    *("time", "monotonic", "perf_counter", "time_ns", "datetime", "now", "random", "randint"),
    *("randrange", "choice", "shuffle", "getrandbits", "uuid4", "urandom", "id", "hash", "set"),
}


def _unequal(subject: Subject, case: Case, text: str) -> Fault:
    """Two ways differ; perhaps because no two runs are the same."""
    for way in ("coalesced", "reference"):
        logs = {digest(run_once(subject, case, way, world=10 + n)) for n in range(AGAIN)}
        if len(logs) > 1:
            return Fault("determinism", "", "two runs of the same load differ: " + _guess(subject))
    return Fault("agreement", "", text)


def agrees(subject: Subject, case: Case, changes: Changes) -> bool:
    """Whether all ways come to the same, were the parts to declare these changes."""
    try:
        one = run_once(subject, case, changes=changes, world=1)
        return not any(
            difference(run_once(subject, case, way, changes=changes, world=1), one)
            for way in ("reference", "three passes at most")
        )
    except (Violation, UserError):
        return False


def digest(outcome: Outcome) -> str:
    """The log of a run in a few characters."""
    return hashlib.sha256(b"\n".join(outcome.log)).hexdigest()[:16]
