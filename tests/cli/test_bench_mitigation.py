"""Published outcomes of migration and tail mitigation: what the catalog says; a small one runs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from batchgen.catalog.mitigation import (
    Comparison,
    Found,
    job_of,
    load_sources,
    missed,
    write_trace,
)
from batchgen.catalog.tail_batching import Rounds, seconds
from batchgen.cli import main
from batchgen.cli.bench_mitigation import chosen
from batchgen.hardware import load_gpu
from batchgen.layout import parse_layout
from batchgen.model import load_model
from batchgen.policy.presets import build_policy, find_preset
from batchgen.trace.schema import load
from batchgen.trace.table import Trace, make_trace

SOURCES = load_sources()
LOADS = [(name, key) for name, source in SOURCES.items() for key in source.loads]


def test_every_comparison_names_what_there_is() -> None:
    for source in SOURCES.values():
        for one in source.comparisons:
            assert one.load in source.loads
            assert {one.before, one.after} <= set(source.settings)
        for rollout in source.loads.values():
            load_model(rollout.model)
            load_gpu(rollout.gpu)
            parse_layout(rollout.layout, rollout.gpus)
        for setting in source.settings.values():
            job = job_of(next(iter(source.loads.values())), setting, Path("x.jsonl"))
            build_policy(find_preset(setting.policy), dict(job.overrides))
            # Parts and their options alone: no constant is fitted to an outcome.
            assert not any(key.startswith(("cost.", "plan.")) for key in setting.changes)
        assert source.comparisons or source.left_out
        assert bool(source.comparisons) == bool(source.assumed)
    assert len(chosen(SOURCES, None)) == sum(len(one.comparisons) for one in SOURCES.values())


PUBLISHED_MEANS = {"moonlight": 22386, "qwen2-vl-72b": 7615, "kimi-k2": 38959}


@pytest.mark.parametrize(("name", "key"), LOADS)
def test_a_load_has_the_lengths_that_were_published(name: str, key: str, tmp_path: Path) -> None:
    rollout = SOURCES[name].loads[key]
    trace = load(str(write_trace(rollout, tmp_path / "rows.jsonl")))
    assert len(trace) == rollout.rows
    assert (trace.max_output_tokens == rollout.limit).all()
    outputs = trace.output_tokens
    assert outputs.max() <= rollout.limit
    if key in PUBLISHED_MEANS:
        assert outputs.mean() == pytest.approx(PUBLISHED_MEANS[key], rel=0.05)
    groups = np.log(outputs.reshape(-1, rollout.samples))
    shared = groups.mean(axis=1).var() / groups.var()  # a part of it is the spread of the means
    assert shared == pytest.approx(rollout.alike + (1 - rollout.alike) / rollout.samples, abs=0.12)
    assert (trace.group == np.repeat(np.arange(len(groups)), rollout.samples)).all()


def found(published: float | tuple[float, float], ratio: float, failed: int = 0) -> Found:
    case = Comparison(load="some", before="one", after="other", published=published)
    return Found(
        source="paper",
        comparison=case,
        before_s=(ratio / 2, 3 * ratio / 2),  # two draws, told together
        after_s=(1.2, 0.8),
        failed_rows=failed,
    )


@pytest.mark.parametrize(
    ("published", "ratio", "error", "passes"),
    [
        (1.4, 1.4, 0.0, True),
        (1.4, 1.7, 0.214, True),
        (1.4, 1.8, 0.286, False),
        (1.2, 0.99, -0.175, False),  # near, but later where it should be sooner
        (0.8, 0.9, 0.125, True),
        (0.8, 1.01, 0.2625, False),
        ((0.9, 1.3), 0.95, 0.0, True),
        ((0.9, 1.3), 1.6, 0.231, True),
        ((0.9, 1.3), 0.6, -0.333, False),
        ((1.0, 1.3), 0.99, -0.01, False),
    ],
)
def test_size_and_direction(
    published: float | tuple[float, float], ratio: float, error: float, passes: bool
) -> None:
    one = found(published, ratio)
    assert one.error == pytest.approx(error, abs=1e-3)
    assert one.passes == passes
    assert len(missed([one])) == (not passes)
    assert not found(published, ratio, failed=1).passes


ONLY = ["bench", "published", "--no-spread", "--draws", "2", "--only", "code, 8 x 1"]


def test_a_small_one_is_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "outcomes.json"
    assert main([*ONLY, "--json", "--out", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    assert not document["cells"]
    found = document["mitigation"]["comparisons"]
    assert [one["after"] for one in found] == ["groups by known work", "rows by known work"]
    assert all(one["passes"] and len(one["draws"]) == 2 for one in found)
    assert found[0]["before_s"] == found[1]["before_s"]  # simulated once
    assert document["mitigation"]["sources"]["others"]["left_out"]
    assert main(ONLY) == 0
    said = capsys.readouterr().out
    assert "1.00 to 1.23 x" in said
    assert "Laminar" in said  # what is not simulated is told


def test_each_has_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ONLY, "--commands", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    times = []
    for line in lines:
        assert main([*line.split()[1:], "--json"]) == 0
        times.append(json.loads(capsys.readouterr().out)["runs"][0]["bct_s"])
    assert main([*ONLY, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["mitigation"]["comparisons"]
    assert times == [first["before_s"][0], first["after_s"][0], second["after_s"][0]]


def test_a_missed_one_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCES["tailsieve"]
    (first, *_) = [one for one in source.comparisons if one.load == "code, 8 x 1"]
    wrong = msgspec.structs.replace(
        source, comparisons=[msgspec.structs.replace(first, published=3.0)]
    )
    monkeypatch.setattr("batchgen.catalog.mitigation.load_sources", lambda: {"tailsieve": wrong})
    assert main(ONLY) == 1
    said = capsys.readouterr()
    assert "tailsieve, code, 8 x 1: groups by known work is " in said.err
    assert " times as fast as groups in turn, published" in said.err
    assert "!: beyond its bar" in said.out
    assert "published 3.00 x" in said.err
    assert "!" in said.out


def test_rounds_as_they_come_and_by_tail_batching() -> None:
    """Lengths stand for ends: by hand."""
    rounds = Rounds(prompts=2, answers=2, more=1.5, short=2, part_of_step=0.5)
    ends = np.array(
        [[1, 2, 9], [3, 3, 3], [8, 8, 1], [4, 4, 4], [7, 1, 2], [50, 60, 70]], dtype=np.int64
    )
    lines = np.arange(6).repeat(3)
    trace = make_trace(
        name="ends",
        prompt_tokens=np.ones(18, np.int32),
        output_tokens=ends.ravel(),
        group=lines,
    )

    def as_long(rows: Trace) -> NDArray[np.int64]:
        return rows.output_tokens.astype(np.int64)

    before_s, after_s = seconds(trace, rounds, as_long)
    # Rounds of two prompts, two answers each: 3, 8, 60. Short ones: the second answers of the first
    # three prompts come at 2, 3 and 8, of the others at 4, 2 and 60; the long round has 8 and 60.
    plain, packed = 3 + 8 + 60, 3 + 4 + 60
    assert before_s == pytest.approx(2 * plain / 1e12)
    assert after_s == pytest.approx((packed + plain) / 1e12)
    few = make_trace(name="few", prompt_tokens=np.ones(15), output_tokens=np.ones(15))
    with pytest.raises(ValueError, match="5 prompts make no"):
        seconds(few, rounds, as_long)


def test_docs_hold_what_was_measured() -> None:
    """Each comparison of the stored result stands in the page's table, with its draws."""
    root = Path(__file__).parents[2]
    newest = sorted((root / "benchmarks" / "results").glob("published-*.json"))[-1]
    page = (root / "docs" / "published.md").read_text(encoding="utf-8")
    rows = [line.replace("*", "") for line in page.splitlines() if line.startswith("| ")]
    found = json.loads(newest.read_text())["mitigation"]["comparisons"]
    assert len(found) > 10
    for one in found:
        ratio, draws = one["simulated"], one["draws"]
        text = f"| {ratio:.2f} ({min(draws):.2f} to {max(draws):.2f}) |"
        assert any(text in row and f"| {one['after']} |" in row for row in rows), (one, text)
