"""`batchgen bench engines`: what is shipped meets its bars; wrong calls are one line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.engines import compare

SHIPPED = Path(__file__).parents[2] / "traces" / "engines"


def test_the_shipped_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plots = tmp_path / "engines.json", tmp_path / "plots"
    arguments = ["bench", "engines", "--ablate", "--json", "--out", str(out), "--plots", str(plots)]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    assert document["missed"] == 0
    profiled = [line for line in document["lines"] if line["costs"] == compare.PROFILES]
    assert len(profiled) == 2 * len(compare.METRICS)
    for line in profiled:
        assert abs(line["error"]) < (0.03 if line["metric"] == "mean_ttft_s" else 0.015)
    for terms in document["without"].values():
        whole = terms["nothing"]
        for term in ("skew of contexts", "decodes dearer beside a prompt", "attention"):
            assert terms[term]["bct_s"] < whole["bct_s"] - 0.02
        assert terms["prefix cache"]["bct_s"] > whole["bct_s"] + 0.005
    assert (plots / "engines.png").stat().st_size > 10_000
    assert main(["bench", "engines", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_missed_bar_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "engines", "--set", "cost.prefill_step_s=0.05"]) == 1
    said = capsys.readouterr()
    assert "RTXPRO6000__Llama-3.1-8B, operator profiles: bct_s is off by +" in said.err
    assert "mean TTFT" in said.out


def test_a_machine_without_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = SHIPPED / "RTXPRO6000__Llama-3.1-8B"
    copy = tmp_path / run.name
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert main(["bench", "engines", "--data", str(tmp_path), "--json"]) in (0, 1)
    assert "op_profiles is no folder" in capsys.readouterr().err
    (tmp_path / "op_profiles").mkdir()
    for name in ("meta.yaml",):
        source = SHIPPED / "op_profiles" / f"RTXPRO6000__Qwen__Qwen3-32B__bf16__{name}"
        (tmp_path / "op_profiles" / source.name).write_bytes(source.read_bytes())
    main(["bench", "engines", "--data", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert {line["costs"] for line in document["lines"]} == {compare.CATALOG}
    assert document["runs"][0]["workload"] == ""
    assert "none is of llama-3.1-8b on rtx-pro-6000" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "--data nowhere is no folder"),
        (["--profiles", "file"], "file is no folder; give a folder of operator profiles"),
        (["--data", "empty"], "--data empty: no folder in it has a meta.json"),
        (["--plots", "file"], "--plots file is a file"),
        (["--set", "cost.step_s"], "--set"),
        (["--set", "cost.none=1"], "--set cost.none: costs have no such constant"),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert main(["bench", "engines", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_folder_of_profiles_is_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`batchgen sim --profile FOLDER`, and constants that still count beside it."""
    trace = tmp_path / "x.jsonl"
    run, workload = SHIPPED / "RTXPRO6000__Llama-3.1-8B", "sharegpt-llama-3.1-8b-300-sps10"
    prefixes = SHIPPED / f"{workload}.hash16.jsonl.gz"
    command = ["trace", "import", str(run), "--prefixes", str(prefixes), "-o", str(trace)]
    assert main([*command, "--limit", "20"]) == 0
    capsys.readouterr()
    command = ["sim", "--trace", str(trace), "--model", "llama-3.1-8b", "--gpu", "rtx-pro-6000"]
    command += ["--gpus", "1", "--layout", "tp1", "--policy", "vllm", "--json"]
    command += ["--profile", str(SHIPPED / "op_profiles")]
    seconds = []
    for more in ([], ["--set", "cost.step_s=0.01"]):
        assert main([*command, *more]) == 0
        (found,) = json.loads(capsys.readouterr().out)["runs"]
        seconds.append(found["mean_tpot_s"])
    assert seconds[1] - seconds[0] == pytest.approx(0.0097, rel=0.3)
    wrong = [part if part != "rtx-pro-6000" else "h100" for part in command]
    assert main(wrong) == 2
    assert "none is of llama-3.1-8b on h100" in capsys.readouterr().err
