"""`batchgen bench costs`: what is shipped meets its bars; wrong calls are one line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.cost.operators import assess
from batchgen.cost.operators.assess import Bar


def test_the_shipped_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "costs.json"
    assert main(["bench", "costs", "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    document = json.loads(printed)
    assert document == json.loads(out.read_text())
    assert document["missed"] == []
    totals = [row for row in document["rows"] if row["gpu"] == "all"]
    assert {row["operator"] for row in totals} == set(document["bars"])
    assert all(row["errors"]["count"] > 0 for row in totals)
    assert main(["bench", "costs", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_missed_bar_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(assess.BARS, "gemm", Bar(median=0.001, p90=0.2))
    assert main(["bench", "costs"]) == 1
    said = capsys.readouterr()
    assert said.err == "missed: gemm: above its bar\n"
    assert "prefill attention" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--write", "."], "--write has nothing to fit; add --tables DIR"),
        (["--tables", "nowhere"], "tables nowhere is no folder"),
        (["--tables", "empty", "--write", "nowhere"], "nowhere is no folder; make it first"),
        (["--tables", "empty"], "empty has no tables of a GPU of the catalog"),
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
    assert main(["bench", "costs", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_bench_alone_is_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "--only" in capsys.readouterr().out
