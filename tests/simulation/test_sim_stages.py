"""Traces with stages in the simulator: rows go through them, and their tokens and times count."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.machine import advisor_of_job
from batchgen.replay import ReplayReport, replay
from batchgen.report import metrics
from batchgen.report.record import RunRecord
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

PRESETS = ("static", "orca", "vllm", "batchgen")
PS = 10**12


def trace_of(path: Path, rows: int = 40, *, seed: int = 0, most: int = 3) -> Path:
    generator = random.Random(seed)
    lines = [
        {
            "prompt_tokens": generator.randrange(20, 900),
            "output_tokens": generator.randrange(1, 300),
            "stages": [
                {
                    "prompt_tokens": generator.randrange(1, 90),
                    "output_tokens": generator.randrange(1, 200),
                    "wait_s": generator.choice([0, 0.001, 1.5]),
                }
                for _ in range(generator.randrange(most + 1))
            ],
        }
        for _ in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(path: Path, policy: str = "vllm", **options: Any) -> tuple[RunRecord, list[str]]:
    given: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h100", "gpus": 1, "log": "full"}
    record = simulate(SimJob(trace=str(path), policy=policy, **(given | options)))
    return record, gzip.decompress(b"".join(record.decisions or ())).decode().splitlines()


def again(record: RunRecord, log: list[str]) -> ReplayReport:
    return replay(log, advisor=advisor_of_job(record.config["job"]))


@pytest.mark.parametrize("policy", PRESETS)
@pytest.mark.parametrize("depth", ["1", "2"])
def test_every_token_of_every_stage_is_counted(policy: str, depth: str, tmp_path: Path) -> None:
    path = trace_of(tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    record, log = run(path, policy, gpus=2, overrides=(("plan.depth", depth),))
    both = {
        name: [row[name] + sum(stage[name] for stage in row["stages"]) for row in rows]
        for name in ("prompt_tokens", "output_tokens")
    }
    assert record.rows["prompt_tokens"].tolist() == both["prompt_tokens"]
    assert record.rows["output_tokens"].tolist() == both["output_tokens"]
    assert record.rows["stages"].tolist() == [1 + len(row["stages"]) for row in rows]
    assert set(record.row_reasons) <= {"stop", "length"}
    waits = [sum(stage["wait_s"] for stage in row["stages"]) for row in rows]
    spans = (record.rows["end_ps"] - record.rows["arrival_ps"]) / PS
    assert (spans > waits).all()
    if policy != "static" and depth == "1":  # dead rows of a static batch and ghosts give no tokens
        assert record.steps["output_tokens"].sum() == sum(both["output_tokens"])
    report = again(record, log)
    assert (report.events, report.unfinished_rows) == (len(log) - 1, 0)
    assert json.loads(log[0])["bodies"] == "rounds"


def test_policies_see_no_length_of_a_stage(tmp_path: Path) -> None:
    """Of what a body asks for, the budget is the trace's maximum or the option."""
    path = trace_of(tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    most = max(
        max([row["output_tokens"], *(stage["output_tokens"] for stage in row["stages"])])
        for row in rows
    )

    def budgets(log: list[str]) -> set[int]:
        entries = [json.loads(line) for line in log[1:]]
        said = [one for entry in entries for one in entry.get("said", ())]
        return {one["budget"] for one in said if one["what"] == "extend"}

    assert budgets(run(path)[1]) == {most}
    record, log = run(path, max_output_tokens=50)
    assert budgets(log) == {50}
    cut = [
        min(50, row["output_tokens"]) + sum(min(50, s["output_tokens"]) for s in row["stages"])
        for row in rows
    ]
    assert record.rows["output_tokens"].tolist() == cut


def test_a_budget_ends_with_the_context(tmp_path: Path) -> None:
    """llama-3.1-8b takes 131,072 tokens."""
    path = tmp_path / "t.jsonl"
    stage = {"prompt_tokens": 60, "output_tokens": 3}
    row = {"prompt_tokens": 130_900, "output_tokens": 9, "stages": [stage]}
    big = {"prompt_tokens": 5, "output_tokens": 4000}
    path.write_text(json.dumps(row) + "\n" + json.dumps(big) + "\n")
    record, log = run(path)
    assert record.rows["output_tokens"].tolist() == [12, 4000]
    assert '"tokens":60,"budget":103' in "".join(log)  # 131072 - 130900 - 9 - 60
    row["stages"] = [stage, {"prompt_tokens": 60, "output_tokens": 41}]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"row 0 comes to 131073 tokens in 3 stages, .* 131072"):
        run(path)


def test_scarce_memory_and_suspension(tmp_path: Path) -> None:
    path = trace_of(tmp_path / "t.jsonl", 60)
    given = 0
    for policy in ("vllm", "batchgen"):
        record, log = run(path, policy, overrides=(("plan.memory_fraction", "0.235"),))
        assert set(record.row_reasons) <= {"stop", "length"}
        assert again(record, log).unfinished_rows == 0
        given += record.rows["preemptions"].sum() + record.rows["suspensions"].sum()
    assert given > 0


def test_rows_without_stages_are_untouched(tmp_path: Path) -> None:
    path = trace_of(tmp_path / "t.jsonl", most=0)
    record, log = run(path)
    assert "stages" not in record.rows
    assert 'bodies":""' in log[0].replace(" ", "")
    path.write_text(path.read_text().replace(', "stages": []', ""))
    assert run(path)[1][1:] == log[1:]


def test_an_oracle_knows_all_stages(tmp_path: Path) -> None:
    path = trace_of(tmp_path / "t.jsonl")
    record, log = run(path, "batchgen", oracle=True)
    assert json.loads(log[0])["predicted"] == record.rows["output_tokens"].tolist()


def test_a_body_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It extends with the trace's lengths; rows that the trace has none for fail by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    path = trace_of(tmp_path / "t.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    record, log = run(path, body="sim_bodies:twice")
    assert again(record, log).unfinished_rows == 0
    for row, reason, output in zip(
        rows, record.row_reasons, record.rows["output_tokens"].tolist(), strict=True
    ):
        if row["stages"]:
            assert reason in ("stop", "length")
            assert output == row["output_tokens"] + min(30, row["stages"][0]["output_tokens"])
        else:
            assert reason == "body"
    assert "extends for the 1. time, the trace has 0 stages of it" in "".join(log)
    spans = record.rows["end_ps"] - record.rows["arrival_ps"]
    long = np.array([row["output_tokens"] > 80 for row in rows])
    assert (spans[long] > 0.25 * PS).all()


@pytest.mark.parametrize("depth", ["1", "2"])
@pytest.mark.parametrize("policy", PRESETS)
def test_a_row_ends_when_its_body_does(
    policy: str, depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sleep behind the last token is part of it, also in the batch completion time."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    path = trace_of(tmp_path / "t.jsonl", most=0)
    overrides = (("plan.depth", depth),)
    plain, _ = run(path, policy, overrides=overrides)
    rested, log = run(path, policy, overrides=overrides, body="sim_bodies:rests")
    assert rested.row_reasons == plain.row_reasons
    actions = [action for line in log[1:] for action in json.loads(line)["actions"]]
    wakes = {one["row"]: one["at_ps"] for one in actions if one["type"] == "wake"}
    assert [wakes[row] for row in range(len(wakes))] == rested.rows["end_ps"].tolist()
    assert metrics.bct_s(rested) == max(wakes.values()) / PS
    if policy != "static":  # where a sleeper is no dead weight to the others, as an ended row is
        assert metrics.bct_s(rested) >= metrics.bct_s(plain) + 0.5
    assert again(rested, log).unfinished_rows == 0


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    path = trace_of(tmp_path / "t.jsonl", 10)
    command = ["sim", "--trace", str(path), "--model", "llama-3.1-8b", "--gpu", "h100"]
    command += ["--gpus", "1", "--progress", "off", "--policy", "vllm"]
    out = tmp_path / "out"
    assert main([*command, "--json", "--out", str(out), "--log", "full"]) == 0
    (summary,) = json.loads(capsys.readouterr().out)["runs"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    total = sum(r["output_tokens"] + sum(s["output_tokens"] for s in r["stages"]) for r in rows)
    assert summary["output_tokens"] == total
    assert main(["validate", "replay", str(out / "vllm"), "--no-fresh"]) == 0
    packed = (out / "vllm" / "decisions.jsonl.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    at = next(n for n, line in enumerate(lines) if '"said"' in line)
    for change in (('"budget":', '"budget":1'), ('"delay_ps":', '"delay_ps":9')):
        forged = [*lines[:at], lines[at].replace(*change, 1), *lines[at + 1 :]]
        if forged != lines:
            text = "\n".join(forged).encode()
            (out / "vllm" / "decisions.jsonl.gz").write_bytes(gzip.compress(text))
            assert main(["validate", "replay", str(out / "vllm"), "--no-fresh"]) == 1
    capsys.readouterr()
    for body, message in {
        "sim_bodies:reads": "reads text, and a simulation has none",
        "sim_bodies:asks": "a simulation takes a number of tokens",
    }.items():
        assert main([*command, "--body", body, "--out", str(tmp_path / body), "--log", "full"]) == 1
        with gzip.open(tmp_path / body / "vllm" / "decisions.jsonl.gz", "rt") as file:
            assert message in file.read()
    capsys.readouterr()
    for body, message in {
        "sim_bodies": "--body is 'sim_bodies'; give module:function",
        "nowhere:f": "nowhere cannot be imported (ModuleNotFoundError: No module named 'nowhere')",
        "sim_bodies:no": "no is missing in",
        "sim_bodies:NOT_A_BODY": "NOT_A_BODY is no generator function",
    }.items():
        assert main([*command, "--body", body]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
