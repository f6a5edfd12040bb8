"""examples/rounds: bodies of a package of its own bring numbers in rounds; the sums are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from example_packages import ROOT, batchgen, installed

PROMPTS = ROOT / "examples" / "rounds" / "prompts.jsonl"
ROWS = 16


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed("rounds", tmp_path_factory.mktemp("rounds"))


def test_the_sums_are_right_with_and_without_a_tool(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    asked = [json.loads(line) for line in PROMPTS.read_text().splitlines()][:ROWS]
    answers, seconds = {}, {}
    for body in ("prompted", "tool"):
        output = tmp_path / f"{body}.jsonl"
        done = batchgen(
            site, "exec", "--model", str(ROOT / "models" / "sums-moe"), "-i", str(PROMPTS),
            "-o", str(output), "--body", f"batchgen_rounds:{body}", "--limit", str(ROWS),
            "--exact", "--threads", "1", "--progress", "off", "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seconds[body] = json.loads(done.stdout)["runs"][0]["bct_s"]
        lines = [json.loads(line)["response"]["body"] for line in output.read_text().splitlines()]
        answers[body] = [line["choices"][0]["message"]["content"] for line in lines]
        for row, line in zip(asked, lines, strict=True):
            stages = line.get("batchgen", {"stages": [None]})["stages"]
            assert len(stages) == 1 + len(row["later"])
    right = sum(
        text.endswith(f"={int(row['expected']):04d}")
        for row, text in zip(asked, answers["tool"], strict=True)
    )
    assert right >= ROWS - 1
    assert answers["tool"] == answers["prompted"]
    assert seconds["tool"] > 0.05 * max(len(row["later"]) for row in asked)
