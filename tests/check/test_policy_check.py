"""Parts that lie are found, each for what it does; honest ones and all of ours pass."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from batchgen.catalog.systems import system_names
from batchgen.check import sweep as sweeping
from batchgen.check.again import Target, disagreements
from batchgen.check.case import Case, Row
from batchgen.check.examine import examine
from batchgen.check.subjects import find
from batchgen.check.sweep import brief, cases, declaration_for, one_case, sweep
from batchgen.policy.base import SLOTS
from batchgen.policy.presets import PARTS, PRESETS

SOON = {
    "KeyForNobody": ("declaration", "keyed = False"),
    "SometimesChanges": ("declaration", "never, finish, pass"),
    "StreamsToNowhere": ("declaration", "needs"),
    "WritesTable": ("purity", "key wrote table.predicted"),
    "WritesEngine": ("purity", "room wrote engine 0.max_num_seqs"),
    "WritesRank": ("purity", "room wrote engine 0.ranks[0].gave: False became True"),
    "WritesCluster": ("purity", "place wrote cluster.placed_rows: 0 became 1"),
    "SortsWhatItIsGiven": ("purity", "place changed the list"),
    "CountsCalls": ("state", "self.calls: 0 became"),
    "CountsInItsClass": ("state", "CountsInItsClass.calls"),
    "RemembersInItsModule": ("state", "liars.SEEN"),
    "ByTheHour": ("determinism", "its methods name time"),
    "Raises": ("exception", "key raised ZeroDivisionError"),
    "LosesARow": ("answer", "have no place"),
    "PlacesOnTheDead": ("answer", "takes no rows now"),
    "LeasesTooLittle": ("answer", "the worst case of row"),
    "LeasesTooMuch": ("liveness", "at most and failed"),
    "NeverPrefills": ("liveness", "nothing is in flight any more"),
    "GuessesText": ("exception", "on_arrival raised TypeError"),
    "EvenPages": ("agreement", "reference mode and coalesced steps differ"),
    "AnyVictim": ("determinism", "its methods name random"),
}
"""Liars that a few loads find: what for, and words of the text."""

SELDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "KeyByEnds": (
        "finish",
        {
            "preset": "static",
            "rows": [
                {"prompt": 48, "budget": 33, "output": 33, "arrival": 281958},
                {"prompt": 59, "budget": 54, "output": 27, "arrival": 217529},
                {"prompt": 49, "budget": 33, "output": 4, "arrival": 207480},
                {"prompt": 52, "budget": 74, "output": 38, "arrival": 281958},
            ],
            "hbm_pages": 18,
            "page": 8,
            "boundary": 16,
            "seqs": 64,
            "advised": False,
            "overrides": {"admission.part": "fits-now"},
        },
    ),
    "LearnsInSecret": (
        "finish",
        {
            "preset": "orca",
            "rows": [
                {"prompt": 25, "budget": 29, "output": 20},
                {"prompt": 8, "budget": 49, "output": 17},
                {"prompt": 38, "budget": 39, "output": 15, "arrival": 262886},
                {"prompt": 21, "budget": 51, "output": 15, "arrival": 262886},
                {"prompt": 10, "budget": 17, "output": 17, "arrival": 262886},
            ],
            "hbm_pages": 52,
            "boundary": 16,
            "seqs": 2,
            "advised": False,
            "overrides": {"order.part": "shortest"},
            "copy_ps": 3000,
        },
    ),
    "PlacesByEnds": (
        "finish",
        {
            "preset": "static",
            "rows": [
                {"prompt": 1, "budget": 21, "output": 10},
                {"prompt": 1, "budget": 36, "output": 14},
                {"prompt": 3, "budget": 13, "output": 11, "arrival": 412723},
                {"prompt": 10, "budget": 27, "output": 5, "arrival": 1025341},
                {"prompt": 35, "budget": 23, "output": 15},
            ],
            "engines": 4,
            "ranks": 3,
            "roles": ["prefill", "prefill", "decode", "decode"],
            "hbm_pages": 124,
            "page": 2,
            "boundary": 16,
            "budget": 200,
            "seqs": 64,
            "advised": False,
            "overrides": {"admission.part": "lazy-pages"},
            "copy_ps": 3000,
        },
    ),
    "PlacesByClock": (
        "",
        {
            "preset": "batchgen",
            "rows": [
                {"prompt": 42, "budget": 44, "output": 17, "arrival": 361650},
                {"prompt": 44, "budget": 57, "output": 25, "arrival": 303459},
                {"prompt": 8, "budget": 10, "output": 9, "arrival": 535438},
            ],
            "engines": 2,
            "ranks": 2,
            "roles": ["both", "both"],
            "hbm_pages": 56,
            "page": 1,
            "boundary": 16,
            "budget": 16,
            "seqs": 64,
            "advised": False,
            "overrides": {"predictor.part": "mean-seen"},
        },
    ),
}
"""Liars that a hundred loads find: the declaration that they need, and a load that shows them."""


def subject_of(target: str) -> Any:
    (subject,) = find(target)
    return subject


@pytest.mark.parametrize("name", SOON)
def test_a_liar_is_found(name: str, liars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "SHRINK_S", 0.3)
    kind, words = SOON[name]
    subject = subject_of(f"{liars}:{name}")
    finding = sweep(subject, 150, 0)
    assert finding is not None
    assert finding.kind == kind
    assert words in finding.text
    assert finding.slot == next(iter(subject.parts))
    assert finding.remedy
    if finding.case is not None:
        sys.modules["liars"].SEEN.clear()
        again = msgspec.convert(msgspec.json.decode(msgspec.json.encode(brief(finding.case))), Case)
        assert again == finding.case
        shown = one_case(subject, again)
        assert shown is not None
        assert shown.kind == kind


@pytest.mark.parametrize("name", SELDOM)
def test_the_declaration_that_a_part_needs_is_named(name: str, liars: str) -> None:
    changes, document = SELDOM[name]
    subject = subject_of(f"{liars}:{name}")
    case = msgspec.convert(document, Case)
    finding = one_case(subject, case)
    assert finding is not None
    assert finding.kind == "agreement"
    if changes:
        assert f"with {changes!r} the case agrees" in finding.remedy
    else:
        assert "no declaration helps" in finding.remedy
        assert declaration_for(subject, [case])[0] == ""


def test_cases_are_made_small(liars: str) -> None:
    finding = sweep(subject_of(f"{liars}:WritesEngine"), 10, 0)
    assert finding is not None
    assert finding.case is not None
    assert len(finding.case.rows) == 2
    assert not finding.case.troubles


def test_the_order_of_a_set_is_found_in_another_process(
    liars: str, honest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchgen.check.again.ROUNDS", 2)
    target = f"{liars}:OrderOfASet"
    subject = subject_of(target)
    loads = {subject.label: list(cases(subject, 6, 0))}
    found = disagreements([subject], Target(text=target), loads)[subject.label]
    assert found.kind == "determinism"
    assert "hash seed" in found.text
    assert found.case is not None
    assert found.case not in loads[subject.label]  # but a smaller one
    several = find(honest)
    few = {one.label: list(cases(one, 1, 0)) for one in several}
    assert disagreements(several, Target(text=honest), few) == {}


def test_honest_parts_pass(honest: str) -> None:
    subjects = find(honest)
    assert len(subjects) == 8
    for subject in subjects:
        assert sweep(subject, 5, 0) is None, subject.label


@pytest.mark.parametrize("slot", SLOTS)
def test_our_parts_pass(slot: str) -> None:
    for name in PARTS[slot]:
        assert sweep(subject_of(f"{slot}.{name}"), 4, 1) is None, name


@pytest.mark.parametrize("preset", [*PRESETS, *system_names()])
def test_our_presets_pass(preset: str) -> None:
    assert sweep(subject_of(preset), 4, 2) is None


def test_options_reach_the_part() -> None:
    subject = find("order.by-prompt", [("order.threshold_tokens", "7")])[0]
    assert subject.texts == {"order": {"threshold_tokens": "7"}}
    assert sweep(subject, 4, 0) is None


def test_a_part_that_may_change_its_mind_is_asked_each_pass_for_rows_of_others(honest: str) -> None:
    """Rows that ask a decode engine for pages wait as rows of lanes do."""
    case = Case(
        preset="vllm",
        rows=(Row(prompt=9, budget=32, output=24), Row(prompt=13, budget=11, output=10)),
        engines=2,
        roles=("prefill", "decode"),
        hbm_pages=110,
        boundary=16,
        seqs=64,
        advised=False,
        copy_ps=3000,
    )
    assert examine(subject_of(f"{honest}:EvenPagesEachPass"), case) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SOON, *SELDOM])
def test_a_liar_is_found_by_the_command_as_it_is(name: str, liars: str) -> None:
    assert sweep(subject_of(f"{liars}:{name}"), 150, 0) is not None


@pytest.mark.slow
@pytest.mark.parametrize("slot", SLOTS)
def test_our_parts_pass_at_length(slot: str) -> None:
    for name in PARTS[slot]:
        assert sweep(subject_of(f"{slot}.{name}"), 300, 7) is None, name


@pytest.mark.slow
def test_honest_parts_pass_at_length(honest: str) -> None:
    for subject in find(honest):
        assert sweep(subject, 300, 7) is None, subject.label
