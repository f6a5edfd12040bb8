"""Stages of rows in traces: read, checked by name, written back, taken with their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.errors import DataError
from batchgen.trace.schema import load, save
from batchgen.trace.stages import Stages
from batchgen.trace.stats import describe
from batchgen.trace.table import Trace, make_trace

ROW = {"prompt_tokens": 5, "output_tokens": 4}
STAGE = {"prompt_tokens": 3, "output_tokens": 2}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(trace: Trace) -> list[list[tuple[int, int, int]]]:
    """(follow-up, output, wait in ps) of every stage of every row."""
    stages = trace.stages
    if stages is None:
        return [[] for _ in range(len(trace))]
    every = [stages.prompt_tokens.tolist(), stages.output_tokens.tolist(), stages.wait_ps.tolist()]
    flat = list(zip(*every, strict=True))
    return [
        flat[a:b] for a, b in zip(stages.offsets[:-1].tolist(), stages.offsets[1:], strict=True)
    ]


def random_trace(seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, 40)
    total = int(counts.sum())
    return make_trace(
        name="random",
        prompt_tokens=rng.integers(1, 900, 40),
        output_tokens=rng.integers(1, 900, 40),
        stages=Stages(
            offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            prompt_tokens=rng.integers(1, 99, total).astype(np.int32),
            output_tokens=rng.integers(1, 99, total).astype(np.int32),
            wait_ps=rng.integers(0, 10**18, total) * rng.integers(0, 2, total),
        ),
    )


@pytest.mark.parametrize("seed", range(5))
def test_written_and_read_again_to_the_picosecond(seed: int, tmp_path: Path) -> None:
    trace = random_trace(seed)
    for name in ("t.jsonl", "t.jsonl.gz"):
        save(trace, tmp_path / name)
        assert told(load(tmp_path / name)) == told(trace)


def test_rows_are_taken_with_their_stages() -> None:
    trace = random_trace(9)
    rows = np.random.default_rng(0).permutation(40)[:25]
    assert told(trace.take(rows)) == [told(trace)[row] for row in rows.tolist()]


def test_fields_and_absent_stages(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        ROW,
        ROW | {"stages": [STAGE, STAGE | {"wait_s": 0.5}]},
        ROW | {"stages": []},
    )
    assert told(load(path)) == [[], [(3, 2, 0), (3, 2, 500_000_000_000)], []]
    assert load(write(tmp_path / "u.jsonl", ROW, ROW)).stages is None
    assert load(path, max_rows=1).stages is None


def test_statistics_count_all_stages(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", ROW, ROW | {"stages": [STAGE, STAGE | {"wait_s": 3}]})
    found = describe(load(path))
    assert found["total_tokens"] == 2 * 9 + 2 * 5
    stages = found["stages"]
    assert (stages["count"], stages["rows"], stages["most"]) == (2, 1, 2)
    assert (stages["prompt_tokens"]["total"], stages["output_tokens"]["total"]) == (6, 4)
    assert (stages["wait_mean_s"], stages["wait_max_s"]) == (1.5, 3)


@pytest.mark.parametrize(
    ("stages", "field", "message"),
    [
        ([STAGE, {"prompt_tokens": 0, "output_tokens": 1}], "stages[1].prompt_tokens", ">= 1"),
        ([{"prompt_tokens": 1}], "stages[0].output_tokens", "missing"),
        ([STAGE | {"wait": 1}], "stages[0].wait", "unknown field"),
        ([STAGE | {"wait_s": -1}], "stages[0].wait_s", "-1 is not a time from 0 to 1000000 s"),
        ([STAGE, STAGE | {"wait_s": 2e6}], "stages[1].wait_s", "is not a time from 0"),
        ([7], "stages[0]", "object"),
        (7, "stages", "array"),
    ],
)
def test_bad_stages_are_named(stages: Any, field: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", ROW, ROW | {"stages": stages})
    with pytest.raises(DataError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert f"{path}:2" in text
    assert field in text
    assert message in text
    assert len(load(path, skip_bad=True)) == 1


def test_columns_that_do_not_fit_are_named() -> None:
    good = random_trace(1).stages
    assert good is not None
    with pytest.raises(ValueError, match=r"stages: 40 rows, wanted 1"):
        make_trace(name="x", prompt_tokens=[1], output_tokens=[1], stages=good)
    with pytest.raises(ValueError, match=r"stages.offsets"):
        Stages(
            offsets=good.offsets[:-1],
            prompt_tokens=good.prompt_tokens,
            output_tokens=good.output_tokens,
            wait_ps=good.wait_ps,
        )


def test_rounds_are_generated_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first stages are those of the same command without rounds."""
    from batchgen.cli import main

    lengths = ["--prompt-tokens", "lognormal:mean=90,sigma=0.8", "--output-tokens", "constant:7"]
    for name, more in {
        "one": [],
        "three": ["--rounds", "3", "--follow-up-tokens", "constant:20", "--wait-s", "0.5"],
        "some": ["--rounds", "lognormal:mean=3,sigma=1,max=9", "--follow-up-tokens", "constant:2",
                 "--round-output-tokens", "constant:9"],
        "slow": ["--rounds", "2", "--follow-up-tokens", "constant:2", "--wait-s", "10000"],
    }.items():  # fmt: skip
        command = ["trace", "generate", "-o", str(tmp_path / name), "-n", "200", *lengths, *more]
        assert main(command) == 0
    one, three, some = (load(tmp_path / name) for name in ("one", "three", "some"))
    assert one.prompt_tokens.tolist() == three.prompt_tokens.tolist() == some.prompt_tokens.tolist()
    assert {len(stages) for stages in told(three)} == {2}
    assert {stage[:2] for stages in told(three) for stage in stages} == {(20, 7)}
    assert three.stages is not None
    assert 4e11 < three.stages.wait_ps.mean() < 6e11
    assert {len(stages) for stages in told(some)} == set(range(9))
    assert {stage for stages in told(some) for stage in stages} == {(2, 9, 0)}
    capsys.readouterr()
    assert main(["trace", "stats", str(tmp_path / "three")]) == 0
    shown = capsys.readouterr().out
    assert "400 after the first, of 200 rows (most 2), waits of" in shown
    for bad, message in {
        "--rounds 3": "--rounds needs lengths",
        "--wait-s 3": "give --rounds N",
        "--rounds 0 --follow-up-tokens constant:3": "constant:0: not a number",
        "--rounds 40000 --follow-up-tokens constant:3": "a row of 40000 rounds",
        "--rounds 2 --follow-up-tokens constant:3 --wait-s 1e9": (
            "a mean wait of 1e+09 s between rounds; give 0 to 10000"
        ),
    }.items():
        command = ["trace", "generate", "-o", str(tmp_path / "x"), "-n", "2", *lengths]
        assert main([*command, *bad.split()]) == 2
        assert message in capsys.readouterr().err
