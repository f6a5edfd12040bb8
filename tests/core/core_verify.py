"""Everything that must hold for one case, and the search for the smallest case that fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from core_cases import Case, Outcome, random_case, run, simpler
from core_invariants import Invariants
from core_sim import simulate_case

from batchgen.log import encode
from batchgen.sequence import Status

Composition = tuple[str, dict[str, str]]
CODES = {"capacity", "cancelled", "bad", "no_device"}


def ends_by_name(outcome: Outcome) -> None:
    """Every row ended, with all its tokens or a reason; nothing is left anywhere."""
    table = outcome.table
    for index, row in enumerate(outcome.case.rows):
        status, reason = table.v_status[index], outcome.reasons[index]
        if status == Status.DONE:
            assert table.v_produced[index] == row.total, table.story(index)
            assert reason in ("stop", "length")
        else:
            assert status == Status.FAILED, table.story(index)
            assert reason in CODES, reason
            assert bool(outcome.walker.why[index]) == (reason == "capacity")
    assert outcome.runtime.unfinished == 0
    for engine in outcome.runtime.cluster.engines:
        assert engine.host_used == engine.stream_used == 0
        for rank in engine.ranks:
            assert rank.used == rank.waiting == 0


def same(one: Outcome, other: Outcome) -> None:
    """Equal passes, times, copies, columns, reasons and clocks."""
    wanted, got = one.everything(), other.everything()
    for name in wanted:
        assert got[name] == wanted[name], f"{name} differs"


def verify_core(case: Case) -> None:
    """Invariants after every event, the end of every row, coalesced == reference, determinism."""
    reference = run(case, reference=True, checker=Invariants(case))
    ends_by_name(reference)
    coalesced = run(case, checker=Invariants(case))
    same(reference, coalesced)
    same(reference, run(case, max_passes=3))
    assert run(case).log == coalesced.log


def verify_backends(case: Case) -> None:
    """The simulator against the plain walker: the same events and actions, at the same times."""
    case = replace(case, bad_copies=0)
    plain = run(case)
    simulation, entries = simulate_case(case)
    first, end = plain.times()
    assert simulation.recorder.first_token_ps.tolist() == first
    assert simulation.recorder.end_ps.tolist() == end
    assert simulation.recorder.reasons == plain.reasons
    names = ("status", "engine", "produced", "preemptions", "recomputed", "suspensions")
    for name in (*names, "migrations"):
        column = getattr(simulation.table, name).tolist()
        assert column == getattr(plain.table, name).tolist(), name
    if not any(trouble[0] == "slow" for trouble in case.troubles):
        # (the simulator ends a step where the speed changes)
        assert [encode(entry) for entry in entries] == plain.log


def smallest(case: Case, check: Callable[[Case], None]) -> Case:
    """A case that fails as this one does and has no simpler neighbour that fails."""
    again = True
    while again:
        again = False
        for candidate in simpler(case):
            try:
                check(candidate)
            except AssertionError:
                case, again = candidate, True
                break
            except Exception:  # another failure; not what is looked for
                continue
    return case


def random_cases(
    compositions: Sequence[Composition], seed: int, count: int, check: Callable[[Case], None]
) -> None:
    """`count` random cases of these compositions; the first that fails is made small and shown."""
    rng = random.Random(seed)
    for _ in range(count):
        composition, number = rng.choice(compositions), rng.randrange(1 << 30)
        case = random_case(random.Random(number), composition)
        try:
            check(case)
        except AssertionError as error:
            small = smallest(case, check)
            text = f"{error}\ncase {number} of {composition}, made small:\n{small}"
            raise AssertionError(text) from error
        except Exception as error:
            raise AssertionError(f"case {number} of {composition}: {error!r}\n{case}") from error
