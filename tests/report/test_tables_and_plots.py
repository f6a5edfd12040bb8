"""Tables say what the summaries say; figures and timelines are written for every shape of run."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from batchgen.report import plots, style, tables, text
from batchgen.report.metrics import summary
from batchgen.report.plots import plot_comparison, plot_run
from batchgen.report.timeline import write_timeline


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (0, "0 s"),
        (0.0045, "4.5 ms"),
        (12.34, "12.3 s"),
        (99.96, "1 min 40 s"),
        (3599.7, "1 h 00 min"),
        (3905, "1 h 05 min"),
        (200_000, "2 d 8 h"),
        (-70, "-70.0 s"),
    ],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert text.duration(seconds) == expected


def render(summaries: list[dict[str, object]]) -> str:
    out = StringIO()
    Console(file=out, width=200).print(tables.report(summaries))
    return out.getvalue()


def test_the_gap_is_taken_apart_into_its_causes(synthetic: ModuleType) -> None:
    fast = summary(synthetic.toy_record(policy="fast", num_rows=300, num_engines=4))
    slow = dict(fast, policy="slow", bct_s=fast["bct_s"] + 100)
    slow["idle_s"] += 120
    slow["decode_s"] -= 20
    lines = tables.why_lines([slow, fast])
    assert lines[0].startswith("slow: ")
    assert lines[0].endswith("1 min 40 s behind fast = +2 min 00 s idle, -20.0 s decode")
    assert "behind" not in lines[1]


def test_the_table_names_runs_and_hides_what_nobody_knows(synthetic: ModuleType) -> None:
    runs = [
        summary(synthetic.toy_record(policy="vllm", num_rows=50, refill=refill))
        for refill in (True, False)
    ]
    shown = render(runs)
    assert "vllm (1)" in shown
    assert "vllm (2)" in shown
    assert "toy-8b on 16 x h100, layout tp1, 50 rows (sim)" in shown
    assert "rows failed" not in shown
    for run in runs:
        run.update(mfu=None, failed_rows=2, finished_rows=48, failed_by_code={"capacity": 2})
    shown = render(runs)
    assert "MFU" not in shown
    assert "rows failed" in shown
    assert "against the fastest" not in render(runs[:1])


def test_a_run_with_failed_rows_is_never_the_fastest(synthetic: ModuleType) -> None:
    whole = summary(synthetic.toy_record(policy="whole", num_rows=300, num_engines=4))
    record = synthetic.toy_record(policy="lossy", num_rows=300, num_engines=4)
    record.rows["status"][:7] = 1
    record.row_reasons[:7] = ["capacity"] * 5 + ["no_device"] * 2
    lossy = summary(record)
    lossy["bct_s"] = whole["bct_s"] / 2  # it did less
    slower = dict(whole, policy="slower", bct_s=2 * whole["bct_s"])
    slower["idle_s"] += whole["bct_s"]
    assert lossy["failed_by_code"] == {"capacity": 5, "no_device": 2}
    runs = [lossy, whole, slower]
    assert tables.fastest(runs) == 1
    table = tables.comparison_table(runs)
    cells = {row[0]: row[1:] for row in zip(*(c.cells for c in table.columns), strict=True)}
    assert cells["against the fastest"] == ("-", "1.00x", "2.00x")
    assert "bold green" not in cells["batch completion time"][0]
    assert "bold green" in cells["batch completion time"][1]
    assert cells["rows failed"][0] == "[bold red]7 of 300 (5 capacity, 2 no_device)[/]"
    lines = tables.why_lines(runs)
    assert lines[0].endswith("not compared, for rows failed: 7 of 300 (5 capacity, 2 no_device)")
    assert "behind whole" in lines[2]
    assert not any("behind lossy" in line for line in lines)

    alone = [dict(run, failed_rows=1, finished_rows=299) for run in (whole, slower)]
    assert tables.fastest(alone) is None
    assert "against the fastest" not in render(alone)
    assert "bold green" not in "".join(
        cell for column in tables.comparison_table(alone).columns for cell in column.cells
    )


def test_what_is_known_of_the_error_is_told_with_its_source(synthetic: ModuleType) -> None:
    run = summary(synthetic.toy_record(num_rows=50))
    assert "known error" not in render([run])  # a run that was measured has none
    run["residual"] = {"what": "none measured (catalog roofline)", "p90": None}
    shown = render([run])
    assert "known error: none measured (catalog roofline)" in shown
    measured = {"median": 0.05, "p90": 0.104, "count": 1200}
    named = {"what": "completion time", "source": "bench engines", "result": "engines-x.json"}
    run["residual"] = measured | named
    shown = render([run])
    assert "± 10 % (bench engines, 90th)" in shown
    assert (
        "known error: of completion time; median 5.0 %, 90th percentile 10.4 % of 1,200 points "
        "(bench engines, engines-x.json)"
    ) in shown


def test_layouts_that_differ_are_named_with_the_next_best(synthetic: ModuleType) -> None:
    runs = [summary(synthetic.toy_record(policy=name, num_rows=50)) for name in "ab"]
    assert "layout " not in render(runs).replace("layout tp1,", "")
    runs[0]["layout"] = "tp2,dp8"
    runs[0]["layout_search"] = {
        "runner_up": {"layout": "tp4,dp4", "seconds": 71.0, "how": "estimate"}
    }
    shown = render(runs)
    assert "layout several" in shown
    assert "tp2,dp8" in shown
    assert "tp4,dp4" in shown
    assert "71.0 s (estimate)" in shown


def test_an_empty_run_has_a_table_and_no_figures(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.toy_record(num_rows=0)
    assert "nothing ran" in render([summary(record)])
    assert plot_run(record, tmp_path) == []
    assert plot_comparison([record], tmp_path) == []


@pytest.mark.parametrize(("engines", "gpus"), [(1, 1), (1, 128), (600, 2)])
def test_figures_of_any_cluster(
    synthetic: ModuleType, tmp_path: Path, engines: int, gpus: int
) -> None:
    record = synthetic.toy_record(num_rows=200, num_engines=engines, gpus_per_engine=gpus)
    files = plot_run(record, tmp_path)
    assert [p.name for p in files] == [
        "utilisation.png",
        "active.png",
        "completion.png",
        "time_split.png",
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in files)


def test_comparison_figures_with_faults(synthetic: ModuleType, tmp_path: Path) -> None:
    runs = [
        synthetic.toy_record(policy="static", refill=False),
        synthetic.toy_record(policy="batchgen", faults=True),
    ]
    files = plot_comparison(runs, tmp_path)
    assert [p.name for p in files] == [
        "completion.png",
        "time_split.png",
        "over_time.png",
        "utilisation.png",
    ]


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_timeline_is_valid_trace_event_json(
    synthetic: ModuleType, tmp_path: Path, name: str
) -> None:
    record = synthetic.toy_record(num_rows=100, num_engines=16, faults=True)
    number = write_timeline(record, tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    events = json.loads(gzip.decompress(raw) if name.endswith("gz") else raw)["traceEvents"]
    assert len(events) == number
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == len(record.steps["q0"])
    assert sum(e["dur"] for e in slices) == pytest.approx(record.steps["duration_ps"].sum() / 1e6)
    assert {e["pid"] for e in slices} == {0, 1}
    assert [e["name"] for e in events if e["ph"] == "i"] == [
        f"fault: {mark['text']}" for mark in record.marks
    ]


def test_numbers_in_pictures_have_no_exponent() -> None:
    shown = [style.number(x) for x in (0.0, 0.01234, 1.234, 99.96, 2394.0, 123_456.0)]
    assert shown == ["0", "0.0123", "1.23", "100", "2,390", "123,000"]


def test_each_kind_of_fault_has_its_name_in_the_picture(synthetic: ModuleType) -> None:
    words = ["slow x2 (gpu 3)", "notice (gpu 5)", "lost (gpu 5)", "back (gpu 5)"]
    marks = [{"t_ps": 0, "engine": 0, "kind": "fault", "text": word} for word in words]
    with style.figures() as plt:
        _, axis = plt.subplots()
        plots._draw_faults(axis, replace(synthetic.toy_record(num_rows=50), marks=marks), 1.0)
        labels = axis.get_legend_handles_labels()[1]
    assert sorted(labels) == ["back", "lost", "notice", "slow"]
