"""The output file: input order, one rename, never over a file that was there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.job.output import OutputWriter, StageAnswer, answer_object, bad_row_object
from batchgen.job.rows import BadRow, JobRow
from batchgen.job.sampling import Sampling


def row(index: int, kind: str = "chat") -> JobRow:
    return JobRow(
        index=index,
        line=index + 1,
        custom_id=f"c{index}",
        kind=kind,
        model=None,
        prompt_ids=(1, 2, 3),
        max_output=5,
        sampling=Sampling(),
        ignore_eos=False,
    )


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.permutations(range(6)))
def test_any_order_of_answers_gives_input_order(tmp_path: Path, order: list[int]) -> None:
    path = tmp_path / "out.jsonl"
    with OutputWriter(path, force=True) as writer:
        for index in order:
            writer.write(index, {"custom_id": f"c{index}"})
        writer.commit(6)
    ids = [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]
    assert ids == [f"c{i}" for i in range(6)]
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_objects_have_the_openai_shape() -> None:
    hey = StageAnswer(text="hey", completion_tokens=2, reason="stop")
    value = answer_object(row(4), [hey], model="m")
    body = value["response"]["body"]
    assert value["custom_id"] == "c4"
    assert value["error"] is None
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hey"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert "batchgen" not in body
    short = StageAnswer(text="t", completion_tokens=1, reason="length")
    text = answer_object(row(0, "completion"), [short], model="m")
    assert text["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert text["response"]["body"]["choices"][0]["text"] == "t"
    more = StageAnswer(
        text="t", completion_tokens=1, reason="body", follow_up="and?", prompt_tokens=4
    )
    body = answer_object(row(4), [hey, more], model="m")["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "t"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert [stage["prompt_tokens"] for stage in body["batchgen"]["stages"]] == [3, 4]
    assert [stage["finish_reason"] for stage in body["batchgen"]["stages"]] == ["stop", "body"]
    bad = bad_row_object(BadRow(index=1, line=2, custom_id=None, code="invalid_json", message="x"))
    assert bad["response"] is None
    assert bad["error"] == {"code": "invalid_json", "message": "line 2: x"}


def test_nothing_is_written_over_without_force(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists"):
        OutputWriter(path)
    with pytest.raises(UserError, match="is the input"):
        OutputWriter(path, inputs=path, force=True)
    with pytest.raises(UserError, match="is a folder"):
        OutputWriter(tmp_path)
    with (
        pytest.raises(UserError, match="cannot write"),
        OutputWriter(tmp_path / "no" / "out.jsonl"),
    ):
        pass
    assert path.read_text() == "precious"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutputWriter(path) as writer:
        writer.write(0, {})
        path.write_text("precious")
        with pytest.raises(UserError, match="appeared"):
            writer.commit(1)
    assert path.read_text() == "precious"


def test_an_unfinished_job_leaves_nothing(tmp_path: Path) -> None:
    with OutputWriter(tmp_path / "out.jsonl") as writer:
        writer.write(1, {})
        with pytest.raises(ValueError, match="row 1 has an output"):
            writer.write(1, {})
        with pytest.raises(ValueError, match="row 0 of 2"):
            writer.commit(2)
    assert not list(tmp_path.iterdir())


def test_a_signal_while_the_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there before its maker knows: a signal comes when the system call returns."""
    make = Path.open

    def made_and_interrupted(path: Path, mode: str = "r") -> None:
        make(path, mode).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", made_and_interrupted)
    with pytest.raises(KeyboardInterrupt), OutputWriter(tmp_path / "out.jsonl"):
        pass
    assert not list(tmp_path.iterdir())
