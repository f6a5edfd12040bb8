"""Whatever a body does, its own row fails by a line that can be printed; no other row notices."""

from __future__ import annotations

import subprocess
import sys

import core_hostile
import pytest
from core_cases import Case, Row, run

from batchgen.coroutine import DECODE, Body, BodyFactory, Decode, Outcome, SequenceView
from batchgen.oneline import escaped, named, one_line, shown

ROWS = tuple(Row(prompt=5 + index, budget=20, output=10 + index % 5) for index in range(7))


@pytest.mark.parametrize("name", core_hostile.BREAK)
@pytest.mark.parametrize("depth", [1, 2])
def test_only_its_own_row_fails(name: str, depth: int) -> None:
    body: BodyFactory = getattr(core_hostile, name)
    outcome = run(Case(preset="batchgen", rows=ROWS, hbm_pages=100, depth=depth), bodies=body)
    failed = {row for row, reason in outcome.reasons.items() if reason == "body"}
    assert {row for row in failed if outcome.walker.why.get(row)} == {0, 3, 6}
    assert sorted(outcome.reasons) == list(range(7))
    for row in (0, 3, 6):
        why = outcome.walker.why[row]
        assert why.startswith(core_hostile.BREAK[name])
        assert why.isprintable()
        assert len(why) < 400
    assert outcome.runtime.bodies is not None
    assert outcome.runtime.bodies.live() == []


def test_a_process_with_bodies_that_do_not_close_ends_in_silence() -> None:
    """Python closes generators once more when it ends, and would complain of each that refuses."""
    code = """
from batchgen.bodies import close

def refuses():
    while True:
        try:
            yield
        except GeneratorExit:
            continue

for _ in range(3):
    body = refuses()
    next(body)
    try:
        close(body)
    except Exception as error:
        print(type(error).__name__)
del body
"""
    words = [sys.executable, "-P", "-c", code]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (ended.stdout.split(), ended.stderr) == (["BodyError"] * 3, "")


def test_a_body_may_poll() -> None:
    """1500 waits without a token are fine when they take time."""
    rows = ROWS[:1]
    outcome = run(Case(preset="vllm", rows=rows, hbm_pages=100), bodies=core_hostile.polls)
    assert outcome.reasons[0] in ("stop", "length")


@pytest.mark.parametrize("kind", ["cancel", "row_failed"])
def test_a_body_that_does_not_let_go_of_a_row_that_ends_otherwise(kind: str) -> None:
    """Its row has failed already, by another name."""

    def body(sequence: SequenceView) -> Body:
        try:
            while (yield DECODE) is not Outcome.FINISHED:
                pass
        except GeneratorExit:
            yield DECODE

    case = Case(preset="vllm", rows=ROWS, hbm_pages=100, troubles=((kind, 5000, 0, 0),))
    reasons = run(case, bodies=body).reasons
    assert reasons[0] == {"cancel": "cancelled", "row_failed": "bad"}[kind]
    assert {reasons[row] for row in range(1, 7)} <= {"stop", "length"}


def test_ctrl_c_is_no_fault_of_a_row() -> None:
    def body(sequence: SequenceView) -> Body:
        yield DECODE
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Case(preset="vllm", rows=ROWS, hbm_pages=100), bodies=body)


def test_a_subclass_of_a_request_is_that_request() -> None:
    class Mine(Decode):
        pass

    def body(sequence: SequenceView) -> Body:
        while (yield Mine()) is not Outcome.FINISHED:
            pass

    outcome = run(Case(preset="vllm", rows=ROWS, hbm_pages=100), bodies=body)
    assert set(outcome.reasons.values()) <= {"stop", "length"}


def test_texts_of_anything() -> None:
    assert escaped("plain ä") == "plain ä"
    assert escaped("a\nb\x1b\ud800") == r"a\nb\x1b\ud800"
    assert one_line(" two \n words ", 5) == "two w"
    assert one_line(core_hostile.OddText("a b")) == "a b"
    assert shown("x" * 99, 4) == "'xxx"
    assert named(ValueError()) == "ValueError"
