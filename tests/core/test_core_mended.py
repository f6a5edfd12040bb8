"""Faults that the first form of the core had, or the second in its first days: one test for each,
of what a user would see. (Those that show through whole simulations: tests/simulation.)"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from core_cases import NAMES, Case, Outcome, Row, run
from core_invariants import Invariants
from core_verify import verify_core

from batchgen import actions as act
from batchgen import events as ev
from batchgen.check.toy import ToyAdvisor
from batchgen.coroutine import DECODE, Body, Extend, SequenceView, Wait
from batchgen.coroutine import Outcome as Told
from batchgen.errors import UserError
from batchgen.policy.compiled import Compiled
from batchgen.policy.presets import CAPABILITIES, PARTS, build_policy, find_preset
from batchgen.runtime.advisor import Offer
from batchgen.step import Step

STEALS = {"placement.part": "least-work"}


def copies(outcome: Outcome, purpose: str) -> list[act.Copy]:
    return [
        action
        for entry in outcome.entries
        for action in entry.actions
        if isinstance(action, act.Copy) and action.purpose == purpose
    ]


# -- compositions ---------------------------------------------------------------------------------


def test_a_composition_that_cannot_work_is_refused_in_one_line() -> None:
    """Every preset with every one and every two slots swapped, on every kind of backend."""
    kinds = [
        frozenset(some)
        for count in range(len(CAPABILITIES) + 1)
        for some in itertools.combinations(sorted(CAPABILITIES), count)
    ]
    refused = set()
    for name, slots in itertools.product(NAMES, itertools.combinations(PARTS, 2)):
        for choice in itertools.product(*(PARTS[slot] for slot in slots)):
            swap = {f"{slot}.part": part for slot, part in zip(slots, choice, strict=True)}
            for capabilities in kinds:
                try:
                    Compiled(build_policy(find_preset(name), swap, capabilities))
                except UserError as error:
                    assert capabilities < CAPABILITIES
                    refused.add(str(error))
    assert len(refused) > 5
    for line in refused:
        assert "\n" not in line
        assert " needs " in line
        assert "--set " in line


SCARCE = Case(
    preset="vllm",
    rows=tuple(Row(prompt=11, budget=60, output=20 + 7 * index % 40) for index in range(14)),
    hbm_pages=40,
    host_pages=30,
    engines=2,
)


@pytest.mark.parametrize(
    ("preset", "slot", "part"),
    [
        ("vllm", "memory", "suspend-most-decoded"),
        ("vllm", "order", "by-prompt"),
        ("vllm", "admission", "lazy-pages"),
        ("batchgen", "admission", "fits-now"),
        ("batchgen", "phase", "mixed"),
    ],
)
def test_compositions_that_crashed_or_failed_every_row(preset: str, slot: str, part: str) -> None:
    """They run scarce memory to the end of every row, and coalesced stepping changes nothing."""
    case = replace(SCARCE, preset=preset, overrides={f"{slot}.part": part})
    verify_core(case)
    assert set(run(case).reasons.values()) <= {"stop", "length"}


@pytest.mark.parametrize("host", [3, 10, 25])
@pytest.mark.parametrize("depth", [1, 2])
def test_engines_of_a_node_never_see_each_others_look_ahead(host: int, depth: int) -> None:
    """Two engines whose host has little room decide alike, however far their steps reach."""
    case = replace(SCARCE, preset="batchgen", host_pages=host, engines_per_node=2, depth=depth)
    verify_core(case)


# -- devices --------------------------------------------------------------------------------------


def test_suspended_rows_outlive_their_device() -> None:
    """What lay on the host is copied from there, not computed again."""
    case = Case(
        preset="vllm",
        overrides={"memory.part": "suspend-most-decoded"},
        rows=tuple(Row(prompt=20, budget=100, output=100) for _ in range(8)),
        engines=2,
        hbm_pages=60,
        host_pages=1000,
    )
    suspended = copies(run(case), "suspend")
    first = next(copy for copy in suspended if copy.engine == 0)
    at = next(
        entry.t
        for entry in run(case).entries
        if any(isinstance(one, act.Copy) and one.rows == first.rows for one in entry.actions)
    )
    lost = replace(case, troubles=(("lost", at + 20_000, 0, 0),))
    outcome = run(lost, checker=Invariants(lost))
    moved = copies(outcome, "migrate")
    assert {copy.from_pool for copy in moved} == {"host"}
    assert set(first.rows) <= {row for copy in moved for row in copy.rows}
    for row in first.rows:
        assert outcome.table.recomputed[row] == 0
    assert set(outcome.reasons.values()) == {"length"}


def test_rows_leave_a_noticed_engine_as_soon_as_there_is_another() -> None:
    """Nobody could take them when the notice came."""
    rows = tuple(Row(prompt=5, budget=100, output=100) for _ in range(6))
    case = Case(
        preset="vllm",
        rows=rows,
        engines=2,
        hbm_pages=2000,
        troubles=(
            ("lost", 1000, 1, 0),
            ("notice", 50_000, 0, 0),
            ("back", 100_000, 1, 0),
            ("lost", 200_000, 0, 0),
        ),
    )
    outcome = run(case, checker=Invariants(case))
    assert sum(len(copy.rows) for copy in copies(outcome, "migrate")) == 6
    assert sum(outcome.table.recomputed) == 0


def test_work_is_counted_once_however_often_copies_fail() -> None:
    """Rows that ask for pages elsewhere, in vain, are no load there."""
    case = Case(
        preset="vllm",
        overrides=STEALS,
        rows=tuple(Row(prompt=5, budget=100, output=100) for _ in range(6)),
        engines=2,
        hbm_pages=2000,
        troubles=(("notice", 50_000, 0, 0),),
        advised=False,
    )
    loads = []
    for bad_copies in (0, 1):
        outcome = run(replace(case, bad_copies=bad_copies))
        assert outcome.table.engine.tolist() == [1] * 6
        loads.append([outcome.runtime.cluster.loads.of(engine) for engine in (0, 1)])
    assert loads[0] == loads[1]


def test_an_engine_whose_notice_is_withdrawn_gets_its_share_and_no_more() -> None:
    late = tuple(Row(prompt=5, budget=100, output=100, arrival=900_000) for _ in range(8))
    case = Case(
        preset="vllm",
        overrides={**STEALS, "placement.steal": "false"},
        rows=tuple(Row(prompt=5, budget=100, output=40) for _ in range(20)) + late,
        engines=2,
        hbm_pages=2000,
        seqs=64,
        troubles=(("notice", 10_000, 0, 0), ("back", 800_000, 0, 0)),
    )
    assert run(case, checker=Invariants(case)).table.engine.tolist()[20:].count(0) == 4


# -- rows that are told to end ---------------------------------------------------------------------

MOVED = Case(
    preset="vllm",
    rows=tuple(Row(prompt=5, budget=100, output=100) for _ in range(6)),
    engines=2,
    hbm_pages=2000,
    troubles=(("notice", 50_000, 0, 0),),
    advised=False,
)


def ends_when_lost(sequence: SequenceView) -> Body:
    outcome = yield DECODE
    while outcome not in (Told.LOST, Told.FINISHED):
        outcome = yield DECODE


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("how", ["not copied", "copies fail"])
def test_a_body_may_end_where_its_kv_is_given_up(how: str, depth: int) -> None:
    """It is told once its row has another place, or none."""
    if how == "not copied":
        case = replace(MOVED, depth=depth, overrides={"recovery.part": "recompute"})
    else:
        case = replace(MOVED, depth=depth, bad_copies=1)
    outcome = run(case, bodies=ends_when_lost, checker=Invariants(case))
    assert sorted(outcome.reasons.values()) == ["body"] * 3 + ["length"] * 3


def test_a_cancelled_row_ends_though_its_copies_fail() -> None:
    """It is in a copy when it is cancelled, and looks for a new engine when that is given up."""
    case = replace(MOVED, bad_copies=1, copy_ps=3000)
    at = next(entry.t for entry in run(case).entries if isinstance(entry.event, ev.CopiesFailed))
    case = replace(case, troubles=(*case.troubles, ("cancel", at - 1, 0, 0)))
    outcome = run(case, checker=Invariants(case))
    assert outcome.reasons[0] == "cancelled"


def test_a_row_that_is_to_sleep_can_be_cancelled_before_it_does() -> None:
    """Its body wants to sleep, but a copy holds it."""

    def sleeper(sequence: SequenceView) -> Body:
        outcome = yield DECODE
        while outcome is not Told.FINISHED:
            outcome = yield Wait(1e-6) if outcome is Told.PROMPT_DONE else DECODE

    case = replace(MOVED, engines=2, roles=("prefill", "decode"), troubles=(), copy_ps=3000)
    copy = next(
        entry.t
        for entry in run(case, bodies=sleeper).entries
        if any(isinstance(one, act.Copy) for one in entry.actions)
    )
    case = replace(case, troubles=(("cancel", copy + 1, 0, 0),))
    outcome = run(case, bodies=sleeper, checker=Invariants(case))
    assert outcome.reasons[0] == "cancelled"
    wakes = [one for entry in outcome.entries for one in entry.actions if isinstance(one, act.Wake)]
    assert 0 not in {wake.row for wake in wakes}


@pytest.mark.parametrize("output", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("depth", [1, 2])
def test_what_a_body_wants_at_the_end_takes_the_place_of_a_sleep(depth: int, output: int) -> None:
    """It wanted to sleep, but its generation ended before it did: no other wait is made for it."""
    asked: list[str] = []

    def hasty(sequence: SequenceView) -> Body:
        outcome = yield DECODE
        while True:
            asked.append(outcome.name)
            if outcome is Told.PROMPT_DONE and not sequence.stage:
                outcome = yield Wait(1e-6)
            elif outcome is Told.FINISHED and not sequence.stage:
                outcome = yield Extend(3, 4)
            elif outcome is Told.FINISHED:
                return
            else:
                outcome = yield DECODE

    row = Row(prompt=5, budget=9, output=output, stages=((3, 4, 0),))
    case = Case(preset="vllm", rows=(row,), depth=depth)
    outcome = run(case, bodies=hasty, checker=Invariants(case))
    assert outcome.reasons == {0: "length"}
    slept = ["PROMPT_DONE", "WOKEN", "FINISHED", "PROMPT_DONE", "FINISHED"]
    ended = [name for name in slept if name != "WOKEN"]
    first_ends_it = ["FINISHED", "PROMPT_DONE", "FINISHED"]
    assert asked in (slept, ended, first_ends_it)


def test_rows_that_are_prefilled_elsewhere_leave_no_dead_rows_behind() -> None:
    """A static batch of a noticed engine: its ended rows keep pages until its last row has gone."""
    prompts, budgets = (32, 21, 40, 22, 30, 33), (19, 36, 40, 21, 10, 14)
    outputs = (12, 10, 34, 9, 6, 7)
    case = Case(
        preset="vllm",
        overrides={"recovery.part": "recompute", "batching.part": "static"},
        rows=tuple(
            Row(prompt=prompt, budget=budget, output=output)
            for prompt, budget, output in zip(prompts, budgets, outputs, strict=True)
        ),
        engines=3,
        ranks=3,
        engines_per_node=2,
        hbm_pages=36,
        seqs=64,
        boundary=16,
        copy_ps=3000,
        advised=False,
        troubles=(("notice", 422_970, 29, 50),),
    )
    verify_core(case)


def test_rows_that_ask_a_noticed_engine_for_pages_get_them() -> None:
    """Its own rows are prefilled elsewhere, which makes room for those that it was asked for."""
    numbers = (
        (14, 33, 10),
        (11, 48, 36),
        (59, 1, 1),
        (8, 19, 7),
        (43, 19, 19),
        (4, 54, 32),
        (60, 50, 15),
        (24, 36, 6),
        (37, 54, 1),
    )
    rows = [Row(prompt=one, budget=two, output=three) for one, two, three in numbers]
    rows[2] = replace(rows[2], stages=((7, 2, 30_000), (12, 10, 0)))
    parts = {
        "recovery": "recompute",
        "phase": "mixed",
        "memory": "nothing",
        "order": "longest",
        "admission": "whole-batch",
        "batching": "whole",
        "placement": "least-work",
        "tail": "partition",
    }
    case = Case(
        preset="vllm",
        overrides={f"{slot}.part": part for slot, part in parts.items()},
        rows=tuple(rows),
        engines=4,
        ranks=3,
        roles=("prefill", "prefill", "decode", "decode"),
        hbm_pages=10,
        page=8,
        boundary=16,
        budget=16,
        seqs=64,
        advised=False,
        troubles=(("notice", 442_860, 38, 20),),
        bad_copies=4,
    )
    verify_core(case)


# -- the tail -------------------------------------------------------------------------------------


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


# -- roles ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("page", [1, 4])
def test_a_prompt_whose_pass_was_lost_with_its_device_is_not_on_the_host(page: int) -> None:
    """With depth 2 the books are a pass ahead; what a lost pass would have computed is undone,
    and was streamed nowhere."""
    rows = (
        Row(prompt=9, budget=60, output=60),
        Row(prompt=9, budget=60, output=60),
        Row(prompt=18, budget=20, output=9, arrival=200_000),
    )
    case = Case(
        preset="vllm",
        rows=rows,
        engines=2,
        hbm_pages=400,
        host_pages=10_000,
        page=page,
        depth=2,
        overrides={"memory.part": "suspend-most-decoded", "admission.part": "lazy-pages"},
    )
    begun, engine = next(
        (entry.t, action.engine)
        for entry in run(case).entries
        for action in entry.actions
        if isinstance(action, Step) and any(chunk[0] == 2 and chunk[3] for chunk in action.chunks)
    )
    step_ps = 20_000  # longer than what is left of the pass before, shorter than both
    for after in range(0, 2 * step_ps, step_ps // 8):
        lost = replace(case, troubles=(("lost", begun + after, engine, 0),))
        outcome = run(lost, checker=Invariants(lost))
        assert outcome.reasons[2] in ("stop", "length")
        ended = begun + after
        first = outcome.times()[0][2]
        if first < ended:
            continue  # it had its first token before the loss
        copied = [
            action
            for entry in outcome.entries
            for action in entry.actions
            if isinstance(action, act.Copy) and 2 in action.rows
        ]
        assert not copied, (after, copied)


# -- phases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["batchgen", "flexgen"])
@pytest.mark.parametrize("boundary", [1, 2, 8])
def test_phases_do_not_mix_however_near_the_boundaries_are(preset: str, boundary: int) -> None:
    """With a boundary at every pass the engine had no phases at all: prompts ran beside decodes."""
    rows = tuple(Row(prompt=30, budget=9 + 7 * n % 40, output=9 + 7 * n % 40) for n in range(24))
    case = Case(
        preset=preset,
        rows=rows,
        hbm_pages=60,
        seqs=6,
        boundary=boundary,
        overrides={"phase.part": "prefill-first"},
    )
    verify_core(case)
    steps = [
        action
        for entry in run(case).entries
        for action in entry.actions
        if isinstance(action, Step)
    ]
    assert sum(bool(step.chunks) for step in steps) > 1
    assert not any(step.decode and step.chunks for step in steps)


# -- layouts --------------------------------------------------------------------------------------


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


# -- whole batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["mixed", "prefill-first"])
def test_an_engine_that_waits_for_a_whole_batch_tells_others_what_it_has_left(phase: str) -> None:
    """An idle engine took rows of one whose steps did not end when rows of its batch did: what it
    took depended on how long those steps were."""
    lengths = [(1, 6, 5), (3, 5, 2), (3, 7, 3), (7, 1, 1), (2, 5, 3)]
    lengths += [(3, 5, 3), (4, 2, 2), (3, 8, 3), (7, 1, 1)]
    case = Case(
        preset="vllm",
        rows=tuple(Row(prompt=one, budget=two, output=three) for one, two, three in lengths),
        engines=2,
        roles=("both", "both"),
        hbm_pages=24,
        page=1,
        boundary=16,
        seqs=64,
        advised=False,
        overrides={
            "phase.part": phase,
            "order.part": "shortest",
            "admission.part": "whole-batch",
            "batching.part": "whole",
            "placement.part": "least-work",
            "predictor.part": "asked-length",
        },
    )
    verify_core(case)
