"""Everything that must hold for one case, and the search for the smallest case that fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from core_cases import Case, random_case, run
from core_invariants import Invariants
from core_sim import simulate_case

from batchgen.check.loads import Composition
from batchgen.check.shrink import smallest
from batchgen.check.verify import difference, loose_ends, needless_failure
from batchgen.log import encode


def verify_core(case: Case) -> None:
    """Invariants after every event, the end of every row, coalesced == reference, determinism."""
    reference = run(case, reference=True, checker=Invariants(case))
    assert not loose_ends(reference), loose_ends(reference)
    assert not needless_failure(reference), needless_failure(reference)
    coalesced = run(case, checker=Invariants(case))
    assert not difference(reference, coalesced), difference(reference, coalesced)
    by_threes = run(case, max_passes=3)
    assert not difference(reference, by_threes), difference(reference, by_threes)
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


def fails(check: Callable[[Case], None]) -> Callable[[Case], bool]:
    """Whether a property does not hold of a case; other failures are not what is looked for."""

    def failed(case: Case) -> bool:
        try:
            check(case)
        except AssertionError:
            return True
        except Exception:
            return False
        return False

    return failed


def random_cases(
    compositions: Sequence[Composition], seed: int, count: int, check: Callable[[Case], None]
) -> None:
    """`count` random cases of these compositions; the first that fails is made small and shown."""
    rng = random.Random(seed)
    for _ in range(count):
        composition, number = rng.choice(compositions), rng.randrange(1 << 30)
        random_load(composition, number, check)


def random_load(composition: Composition, number: int, check: Callable[[Case], None]) -> None:
    """One random case of this composition; if it fails, it is made small and shown."""
    case = random_case(random.Random(number), composition)
    try:
        check(case)
    except AssertionError as error:
        small = smallest(case, fails(check))
        text = f"{error}\ncase {number} of {composition}, made small:\n{small}"
        raise AssertionError(text) from error
    except Exception as error:
        raise AssertionError(f"case {number} of {composition}: {error!r}\n{case}") from error
