"""Faults that the core once had, one test for each: layouts and roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from core_cases import Case, Outcome, Row, run
from core_copies import copies
from core_invariants import Invariants
from core_verify import verify_core

from batchgen import actions as act
from batchgen import events as ev
from batchgen.check.toy import ToyAdvisor
from batchgen.runtime.advisor import Offer

STEALS = {"placement.part": "least-work"}


@dataclass(frozen=True)
class SmallTail(ToyAdvisor):
    """A layout for the tail whose ranks hold less than those of the plan."""

    tail_pages: int = 0

    def partition(self, engine: int, contexts: Sequence[int], current: str) -> Offer:
        offer = super().partition(engine, contexts, current)
        if sum(-(-2 * context // self.page) for context in contexts) > self.tail_pages:
            return replace(offer, layout=current)
        return replace(offer, hbm_pages=self.tail_pages)


@dataclass(frozen=True, kw_only=True)
class SmallTailCase(Case):
    tail_pages: int = 60

    def advisor(self) -> ToyAdvisor:
        plain = super().advisor()
        return SmallTail(plain.home, plain.hbm_pages, plain.page, self.tail_pages)


FEW = tuple(Row(prompt=8, budget=200, output=200) for _ in range(4))


TAIL = SmallTailCase(preset="batchgen", rows=FEW, ranks=4, hbm_pages=200, tail_pages=150)


def layouts(outcome: Outcome, engine: int) -> list[str]:
    return [one[3] for one in outcome.walker.others if one[1] == "switch" and one[2] == engine]


def test_no_engine_is_partitioned_while_rows_wait_anywhere() -> None:
    """Not even where nobody takes rows of another: one may still be lost and leave its rows."""
    rows = tuple(
        Row(
            prompt=8, budget=400, output=400 if index in (1, 3, 5) else 100 if index % 2 == 0 else 2
        )
        for index in range(40)
    )
    robin = {"placement.part": "round-robin"}
    case = replace(TAIL, rows=rows, engines=2, seqs=2, tail_pages=400, overrides=robin)
    outcome = run(case, checker=Invariants(case))
    at, _, engine, _, _ = next(one for one in outcome.walker.others if one[1] == "switch")
    assert engine == 1
    assert at >= max(outcome.walker.first)  # every row has begun


@pytest.mark.parametrize("host", [0, 1000])
def test_a_row_that_fits_only_at_home_undoes_the_partition(host: int) -> None:
    """A partitioned engine takes in a row of a lost one that its own pools could never hold."""
    large = Row(prompt=700, budget=60, output=60)
    case = replace(TAIL, rows=(large, *FEW), engines=2, host_pages=host, seqs=4)
    plain = run(case)
    at = next(one[0] for one in plain.walker.others if one[1] == "switch" and one[2] == 1)
    assert plain.times()[1][0] > at + 1000
    case = replace(case, troubles=(("lost", at + 30_000, 0, 0),))
    verify_core(case)
    outcome = run(case)
    assert layouts(outcome, 1)[:2] == ["half", "home"]
    assert outcome.reasons[0] == "length"


def test_a_row_that_outgrows_the_ranks_of_a_tail_goes_on_at_home() -> None:
    case = replace(TAIL, rows=(Row(prompt=100, budget=500, output=500),), tail_pages=100)
    verify_core(case)
    outcome = run(case)
    assert layouts(outcome, 0)[:2] == ["half", "home"]
    assert outcome.reasons == {0: "length"}


def test_checkpoints_from_elsewhere_undo_a_partition_that_has_no_room_for_them() -> None:
    """An engine is lost; another has partitioned already, for few rows."""
    rows = tuple(
        Row(prompt=40, budget=300, output=300 if index % 2 == 0 or index < 6 else 20)
        for index in range(32)
    )
    case = replace(TAIL, rows=rows, engines=2, host_pages=4000, seqs=16)
    case = replace(case, overrides={**case.overrides, "recovery.part": "rehome"})
    at, _, engine, layout, _ = next(one for one in run(case).walker.others if one[1] == "switch")
    assert layout == "half"
    case = replace(case, troubles=(("lost", at + 60_000, 1 - engine, 0),))
    verify_core(case)
    outcome = run(case)
    assert layouts(outcome, engine)[:2] == ["half", "home"]
    first, second = (len(copy.rows) for copy in copies(outcome, "migrate"))
    assert first + second == 16
    assert set(outcome.reasons.values()) == {"length", "stop"}


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [("batchgen", {}), ("vllm", {**STEALS, "memory.part": "suspend-most-decoded"})],
)
def test_a_hungry_engine_that_prefills_takes_no_rows_from_the_host_of_one_that_decodes(
    preset: str, overrides: dict[str, str]
) -> None:
    case = Case(
        preset=preset,
        overrides=overrides,
        rows=tuple(Row(prompt=5 + 2 * index, budget=80, output=60 + index) for index in range(12)),
        engines=2,
        roles=("prefill", "decode"),
        hbm_pages=60,
        host_pages=1000,
        seqs=64,
    )
    outcome = run(case, checker=Invariants(case))
    assert copies(outcome, "suspend"), "memory is not scarce"
    assert not any(decodes for _, decodes, *_ in outcome.passes()[0])
    assert set(outcome.reasons.values()) <= {"length", "stop"}
    verify_core(case)


def test_a_row_sleeps_on_when_its_engine_goes_home_and_has_no_room_for_it() -> None:
    """It was taken for one that waits, failed for want of pages while nobody wanted any, and stayed
    in the count of those asleep."""
    rows = (
        Row(prompt=21, budget=36, output=11, arrival=1000000, stages=((11, 1, 400000), (6, 9, 1))),
        Row(
            prompt=24, budget=26, output=12, arrival=1300000, stages=((7, 10, 0), (12, 12, 400000))
        ),
    )
    case = Case(
        preset="batchgen",
        rows=rows,
        engines=2,
        ranks=2,
        roles=("both", "both"),
        devices=1,
        engines_per_node=2,
        hbm_pages=6,
        page=8,
        boundary=5,
        budget=64,
        seqs=64,
        advised=True,
        overrides={"admission.part": "worst-case", "placement.part": "round-robin"},
        copy_ps=10,
    )
    verify_core(case)
    entries = run(case).entries
    home = [entry for entry in entries if isinstance(entry.event, ev.LayoutReady)][-1]
    ended = [action.row for action in home.actions if isinstance(action, act.Failed)]
    assert 1 not in ended
