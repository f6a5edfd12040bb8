"""`batchgen sim` and `batchgen report`: flags, the job they make, what is printed and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command

from batchgen.cli import main
from batchgen.cli.common import PlainProgress, parse_names, parse_overrides, progress_bar
from batchgen.errors import UserError
from batchgen.simjob import SimJob

SIM_FLAGS = {
    "--trace",
    "--model",
    "--gpus",
    "--gpu",
    "--gpus-per-node",
    "--cluster",
    "--layout",
    "--policy",
    "--compare",
    "--set",
    "--arrivals",
    "--devices",
    "--faults",
    "--without-faults",
    "--max-output-tokens",
    "--oracle",
    "--profile",
    "--costs",
    "--seed",
    "--limit",
    "--body",
    "--out",
    "--force",
    "--log",
    "--json",
    "--progress",
}
REPORT_FLAGS = {"--plots", "--timeline", "--json", "--force"}


def flags(app: Any) -> set[str]:
    return {o for p in get_command(app).params for o in p.opts if o.startswith("-")} - {"--help"}


def test_the_flags_are_pinned() -> None:
    from batchgen.cli import report, sim

    assert flags(sim.app) == SIM_FLAGS
    assert flags(report.app) == REPORT_FLAGS


def test_defaults_come_from_the_job(toy_simulator: SimpleNamespace, trace_file: str) -> None:
    assert main(["sim", "--trace", trace_file]) == 0
    assert toy_simulator.jobs == [SimJob(trace=trace_file)]


def test_a_layout_is_searched_for_each_policy_unless_one_is_given(
    toy_simulator: SimpleNamespace, trace_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sim", "--trace", trace_file, "--compare", "vllm,orca"]
    assert main(command) == 0
    assert toy_simulator.searched == ["vllm", "orca"]
    assert "orca: tp1: there is no other" in capsys.readouterr().err
    assert main([*command, "--layout", "rule"]) == 0
    assert main([*command, "--layout", "tp2"]) == 0
    assert toy_simulator.searched == ["vllm", "orca"]
    assert [job.layout for job in toy_simulator.jobs[2:]] == [None, None, "tp2", "tp2"]


def test_every_flag_reaches_the_job(
    toy_simulator: SimpleNamespace, trace_file: str, tmp_path: Path
) -> None:
    line = (
        "--model qwen3-8b --gpus 16 --gpu h100 --gpus-per-node 8 --layout tp2 --policy orca "
        "--set batching.max_tokens=4096 --set order.key=a=b --arrivals trace "
        "--max-output-tokens 77 --oracle --costs measured --seed 5 --limit 9 --log full --body m:f"
    )
    files = ["--faults", trace_file, "--out", str(tmp_path / "o")]
    command = ["sim", "--trace", trace_file, *files, *line.split()]
    assert main(command) == 0
    assert main([*command, "--force", "--costs", "roofline", "--profile", trace_file]) == 0
    measured, profiled = toy_simulator.jobs
    assert profiled == replace(measured, costs="roofline", profile=trace_file)
    assert measured == (
        SimJob(
            trace=trace_file,
            model="qwen3-8b",
            gpus=16,
            gpu="h100",
            gpus_per_node=8,
            layout="tp2",
            policy="orca",
            overrides=(("batching.max_tokens", "4096"), ("order.key", "a=b")),
            arrivals="trace",
            faults=trace_file,
            max_output_tokens=77,
            oracle=True,
            costs="measured",
            seed=5,
            limit=9,
            log="full",
            body="m:f",
        )
    )


def test_json_is_all_of_stdout(
    toy_simulator: SimpleNamespace, trace_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "--trace", trace_file, "--compare", "static,vllm", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "runs"]
    assert document["schema"] == 1
    assert [run["policy"] for run in document["runs"]] == ["static", "vllm"]


def test_compare_writes_runs_and_comparison_and_report_reads_them(
    toy_simulator: SimpleNamespace,
    trace_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    args = ["sim", "--trace", trace_file, "--compare", "static,batchgen", "--out", str(out)]
    assert main(args) == 0
    printed, talk = capsys.readouterr()
    assert "batch completion time" in printed
    assert "behind batchgen" in printed
    assert "wrote" in talk
    assert sorted(p.name for p in out.iterdir()) == ["batchgen", "compare.json", "plots", "static"]
    assert len(list((out / "plots").glob("*.png"))) == 4
    assert len(list((out / "static" / "plots").glob("*.png"))) == 4

    assert main(args) == 2  # nothing is overwritten, and nothing simulated in vain
    assert len(toy_simulator.jobs) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([*args, "--force"]) == 0
    capsys.readouterr()

    assert main(["report", str(out), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    saved = json.loads((out / "compare.json").read_text())["runs"]
    assert sorted(runs, key=lambda r: r["policy"]) == sorted(saved, key=lambda r: r["policy"])

    timeline = tmp_path / "t.json"
    figures = tmp_path / "figures"
    extra = ["--timeline", str(timeline), "--plots", str(figures)]
    assert main(["report", str(out / "static"), *extra]) == 0
    assert timeline.is_file()
    assert len(list(figures.glob("*.png"))) == 4
    assert main(["report", str(out), "--timeline", str(timeline)]) == 2


def test_a_failing_policy_keeps_the_runs_before_it(
    toy_simulator: SimpleNamespace, trace_file: str, tmp_path: Path
) -> None:
    toy_simulator.fail = UserError("does not fit")
    out = tmp_path / "out"
    args = ["sim", "--trace", trace_file, "--compare", "static,vllm", "--out", str(out)]
    assert main(args) == 2
    assert [p.name for p in out.iterdir()] == ["static"]


def test_without_faults_runs_once_more(
    toy_simulator: SimpleNamespace, trace_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--faults", trace_file, "--without-faults", "--json"]
    assert main(["sim", "--trace", trace_file, "--compare", "static,vllm", *more]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    told = [(job.policy, job.faults is None) for job in toy_simulator.jobs]
    assert told == [("static", False), ("static", True), ("vllm", False), ("vllm", True)]
    # In the layout that was found for the run with faults.
    assert [job.layout for job in toy_simulator.jobs] == [None, "tp1", None, "tp1"]
    for one in runs:  # the toy knows no troubles
        assert one["without_faults_bct_s"] == one["bct_s"]
        assert one["without_faults_done99_s"] == one["done99_s"] < one["bct_s"]


def test_failed_rows_exit_1(toy_simulator: SimpleNamespace, trace_file: str) -> None:
    toy_simulator.failed_rows = 2
    assert main(["sim", "--trace", trace_file]) == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "tokens=4"], "--set 'tokens=4' is not of the form part.option=value"),
        (["--compare", "vllm,vllm"], "--compare names 'vllm' twice"),
        (["--compare", ","], "--compare names nothing"),
        (["--gpus", "0"], "--gpus is 0; give a number of at least 1"),
        (["--gpus", "12", "--gpus-per-node", "8"], "--gpus 12 does not fill nodes"),
        (["--gpus", "many"], "Invalid value for '--gpus'"),
        (["--arrivals", "later"], "--arrivals is 'later'; choose one of batch, trace"),
        (["--devices", "none.json"], "--devices none.json does not exist"),
        (["--without-faults"], "--without-faults has nothing to leave out; add --devices FILE"),
        (["--log", "all"], "--log is 'all'"),
        (["--log", "full"], "--log full has nowhere to go; add --out DIR"),
        (["--progress", "loud"], "--progress is 'loud'"),
        (
            ["--costs", "measured", "--profile", __file__],
            "--profile and --costs measured are both given",
        ),
        (["--costs", "fast"], "--costs is 'fast'; choose one of roofline, measured"),
        (["--policy", "a/b", "--out", "x"], "unknown policy 'a/b'"),
    ],
)
def test_bad_flags_are_one_line(
    toy_simulator: SimpleNamespace,
    trace_file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    extra: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if extra == ["--log", "all"]:
        extra = [*extra, "--out", "x"]
    assert main(["sim", "--trace", trace_file, *extra]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert toy_simulator.jobs == []


def test_parsing_helpers() -> None:
    assert parse_overrides(["a.b = 1 ", "a.b=2"]) == (("a.b", "1"), ("a.b", "2"))
    assert parse_names("--compare", " a, b,") == ("a", "b")


def test_the_bar_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar("batchgen", "auto") as callback:
        assert callback is not None
        callback(90 * 10**12, 50_000, 100_000)
    assert "50,000/100,000 rows, 90.0 s simulated, " in capsys.readouterr().err


def test_plain_progress_speaks_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = PlainProgress("vllm", every_s=1000)
    quiet(0, 1, 10)
    assert capsys.readouterr().err == ""
    chatty = PlainProgress("vllm", every_s=0)
    chatty(90 * 10**12, 5, 10)
    line = capsys.readouterr().err
    assert line.startswith("vllm: 5/10 rows, 90.0 s simulated, ")
    assert line.count("\n") == 1
