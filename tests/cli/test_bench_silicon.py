"""`batchgen bench silicon`: what is shipped meets its bars; wrong calls are one line each."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.cost.silicon import assess
from batchgen.cost.silicon.assess import Bar
from batchgen.cost.silicon.rows import SHIPPED


def part_of_the_shipped(path: Path, keep: Callable[[dict[str, str]], bool], most: int) -> None:
    """A small table of some of the shipped rows."""
    with gzip.open(SHIPPED, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if keep(row)][:most]
        names = list(reader.fieldnames or ())
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def test_the_shipped_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "silicon.json"
    assert main(["bench", "silicon", "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    document = json.loads(printed)
    assert document == json.loads(out.read_text())
    assert document["missed"] == []
    assert sum(document["left_out"].values()) + document["told"] == document["rows"] == 3157
    overall = document["tables"][0]
    for kind, bar in document["bars"].items():
        found = overall["errors"][kind]
        assert found["median"] <= bar["median"]
        assert found["p90"] <= bar["p90"]
    assert main(["bench", "silicon", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_other_data_and_a_missed_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "some.csv"
    part_of_the_shipped(
        data, lambda row: "Llama-3.1-70B" in row["model_path"] and row["system"] == "h100_sxm", 40
    )
    assert main(["bench", "silicon", "--data", str(data)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "llama-3.1-70b" in said.out
    assert "element-wise kernel, us: vllm" in said.out
    monkeypatch.setitem(assess.BARS, "physics", Bar(median=0.0001, p90=0.3))
    assert main(["bench", "silicon", "--data", str(data), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["missed"] == ["physics"]
    assert said.err.startswith("missed: physics: ")
    assert said.err.endswith("% is above its bar, 0.0 / 30.0 %\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.csv"], "data nowhere.csv does not exist; check --data"),
        (["--data", "."], "data . is a folder"),
        (["--data", "text.csv"], "text.csv:1: has no column 'id'; give a table like"),
        (["--data", "disagg.csv"], "none of 5 rows can be predicted, most for: disaggregated"),
        (["--out", "nowhere/x.json"], "folder nowhere does not exist; make it first"),
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
    (tmp_path / "text.csv").write_text("a,b\n1,2\n")
    part_of_the_shipped(tmp_path / "disagg.csv", lambda row: row["mode"] == "disagg", 5)
    assert main(["bench", "silicon", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
