"""The output file: input order, one rename, never over a file that was there."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.job.logprobs import TokenLogprob, TokenText
from batchgen.job.output import OutputWriter, StageAnswer, answer_object, bad_row_object
from batchgen.job.rows import BadRow, JobRow
from batchgen.job.sampling import Sampling


def kept_file(error: UserError) -> Path:
    """The file that the one line of an error names."""
    found = re.search(r"(?:answers are|be written are) in (\S+\.tmp)", str(error))
    assert found is not None, error
    assert "\n" not in str(error)
    return Path(found[1])


def refuse(number: int) -> Callable[..., None]:
    def call(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


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
    value = answer_object(row(4), [[hey]], model="m")
    body = value["response"]["body"]
    assert value["custom_id"] == "c4"
    assert value["error"] is None
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hey"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert "batchgen" not in body
    short = StageAnswer(text="t", completion_tokens=1, reason="length")
    text = answer_object(row(0, "completion"), [[short]], model="m")
    assert text["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert text["response"]["body"]["choices"][0]["text"] == "t"
    more = StageAnswer(
        text="t", completion_tokens=1, reason="body", follow_up="and?", prompt_tokens=4
    )
    body = answer_object(row(4), [[hey, more]], model="m")["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "t"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert [stage["prompt_tokens"] for stage in body["batchgen"]["stages"]] == [3, 4]
    assert [stage["finish_reason"] for stage in body["batchgen"]["stages"]] == ["stop", "body"]
    body = answer_object(row(4), [[hey], [short], [hey, more]], model="m")["response"]["body"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [c["message"]["content"] for c in body["choices"]] == ["hey", "t", "t"]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    assert [len(choice["stages"]) for choice in body["batchgen"]["choices"]] == [1, 1, 2]
    bad = bad_row_object(BadRow(index=1, line=2, custom_id=None, code="invalid_json", message="x"))
    assert bad["response"] is None
    assert bad["error"] == {"code": "invalid_json", "message": "line 2: x"}


def test_log_probabilities_have_the_openai_shape() -> None:
    """A token of half a character, and the offsets of a text in characters."""
    word, half, rest = (TokenText.of(data) for data in (b"hi", b"\xc3", b"\xa9!"))
    tokens = [
        TokenLogprob(token=word, logprob=-0.5, best=[(word, -0.5), (half, -2.0)]),
        TokenLogprob(token=half, logprob=-3.0, best=[(word, -0.1)]),
        TokenLogprob(token=rest, logprob=float("-inf"), best=[]),
    ]
    answer = StageAnswer(text="hi\u00e9!", completion_tokens=3, reason="length", logprobs=tokens)
    chat = answer_object(row(0), [[answer]], model="m")["response"]["body"]["choices"][0][
        "logprobs"
    ]
    assert chat["content"][0] == {
        "token": "hi",
        "logprob": -0.5,
        "bytes": [104, 105],
        "top_logprobs": [
            {"token": "hi", "logprob": -0.5, "bytes": [104, 105]},
            {"token": "bytes:\\xc3", "logprob": -2.0, "bytes": [0xC3]},
        ],
    }
    assert [one["bytes"] for one in chat["content"]] == [[104, 105], [0xC3], [0xA9, 33]]
    value = answer_object(row(0, "completion"), [[answer]], model="m")
    text = value["response"]["body"]["choices"][0]["logprobs"]
    assert text["tokens"] == ["hi", "bytes:\\xc3", "bytes:\\xa9\\x21"]
    assert text["token_logprobs"] == [-0.5, -3.0, -9999.0]
    assert text["top_logprobs"] == [
        {"hi": -0.5, "bytes:\\xc3": -2.0},
        {"hi": -0.1, "bytes:\\xc3": -3.0},
        {},
    ]
    assert text["text_offset"] == [0, 2, 2]


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
        with pytest.raises(UserError, match="appeared") as error:
            writer.commit(1)
    assert path.read_text() == "precious"
    assert kept_file(error.value).read_text() == "{}\n"


NO_LINKS = [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES]


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_where_there_are_no_links(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT and some network file systems: the answers get their name all the same."""
    monkeypatch.setattr(os, "link", refuse(number))
    path = tmp_path / "out.jsonl"
    with OutputWriter(path) as writer:
        writer.write(0, {"a": 1})
        writer.commit(1)
    assert path.read_text() == '{"a":1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    late = tmp_path / "late.jsonl"
    with OutputWriter(late) as writer:
        writer.write(0, {})
        late.write_text("precious")
        with pytest.raises(UserError, match="appeared") as error:
            writer.commit(1)
    assert late.read_text() == "precious"
    assert kept_file(error.value).read_text() == "{}\n"


@pytest.mark.parametrize("force", [False, True])
def test_a_name_that_cannot_be_had_costs_no_answer(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    with OutputWriter(path, force=force) as writer:
        writer.write(0, {"a": 1})
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
        monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))
        with pytest.raises(UserError, match="No space left") as error:
            writer.commit(1)
    kept = kept_file(error.value)
    assert kept.read_text() == '{"a":1}\n'
    assert list(tmp_path.iterdir()) == [kept]  # no empty file under the output's name


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["removed", "moved", "swept"])
def test_a_folder_that_goes_meanwhile(way: str, force: bool, tmp_path: Path) -> None:
    """The bytes are still in the open file: the folder is made again, the output is in place."""
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    path = folder / "out.jsonl"
    with OutputWriter(path, force=force) as writer:
        for index in range(3):
            writer.write(index, {"n": index})
        if way == "removed":
            shutil.rmtree(tmp_path / "deep")
        elif way == "moved":
            folder.rename(tmp_path / "elsewhere")
        else:
            for temporary in folder.glob(".*"):
                temporary.unlink()
        writer.commit(3)
    assert path.read_text() == '{"n":0}\n{"n":1}\n{"n":2}\n'
    assert [p.name for p in folder.iterdir()] == ["out.jsonl"]


def test_a_folder_that_cannot_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spare))
    folder = tmp_path / "folder"
    folder.mkdir()
    with OutputWriter(folder / "out.jsonl") as writer:
        writer.write(0, {"a": 1})
        shutil.rmtree(folder)
        folder.write_text("a file now")
        with pytest.raises(UserError, match="cannot be put in place") as error:
            writer.commit(1)
    kept = kept_file(error.value)
    assert kept.parent == spare
    assert kept.read_text() == '{"a":1}\n'


@pytest.mark.parametrize("num_rows", [2, 40])
def test_a_disk_that_fills(num_rows: int, tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk: the same calls fail, for real. At the
    very end (2 rows) and in the middle (40)."""

    def job(writer: OutputWriter) -> None:
        for index in range(num_rows):
            writer.write(index, {"x": "y" * (9000 if index < num_rows - 1 else 100_000)})
        writer.commit(num_rows)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with OutputWriter(tmp_path / "out.jsonl") as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(UserError, match="cannot write") as error:
                job(writer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = kept_file(error.value)
    assert json.loads(kept.read_bytes().splitlines()[0]) == {"x": "y" * 9000}
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("force", [False, True])
def test_an_interruption_while_it_is_put_in_place(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "out.jsonl"
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(os, "replace", interrupt)
    with OutputWriter(path, force=force) as writer:
        writer.write(0, {})
        with pytest.raises(KeyboardInterrupt):
            writer.commit(1)
    assert not list(tmp_path.iterdir())


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
