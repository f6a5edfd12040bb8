"""A policy part and a preset of another package, found by entry points, run by exec and sim."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from exec_cases import Case, check_answer

from batchgen.cli.agreement import compare_backends
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.init import init_model
from batchgen.exec.prepare import prepare
from batchgen.logbook import DecisionLog
from batchgen.policy.presets import preset_names
from batchgen.replay import replay

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"
PRESET = "vllm-shortest-prompt"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example package as if installed: on the path, with the metadata that pip would write."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "batchgen_shortest_prompt-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    sections = []
    for group, points in project["entry-points"].items():
        sections.append(f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()))
    (info / "entry_points.txt").write_text("\n".join(sections))
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.usefixtures("plugin")
def test_a_preset_of_another_package_runs_on_exec(tmp_path: Path) -> None:
    model = init_model(tmp_path / "model", "llama", "tiny", seed=2)
    rows = tuple((number, 20) for number in range(10))
    case = Case(
        policy=PRESET, rows=rows, seqs=2, hbm_pages=30, overrides=(("order.round_tokens", "1"),)
    )
    assert PRESET in preset_names()
    prepared = prepare(case.job(model, tmp_path))
    log: DecisionLog = prepared.log()
    ran = drive(prepared, WallClock(), log=log)
    for row, (number, budget) in enumerate(rows):
        check_answer(model, number, ran.tokens[row], budget)
    lengths = [len(row.prompt_ids) for row in prepared.jobs]
    order = [row for row in _admitted(log) if not prepared.table.preemptions[row]]
    assert [lengths[row] for row in order] == sorted(lengths[row] for row in order)
    assert len(order) > 5
    assert replay(log.lines()).preset == PRESET


@pytest.mark.usefixtures("plugin")
def test_both_backends_agree_on_it(tmp_path: Path) -> None:
    model = init_model(tmp_path / "model", "qwen3", "tiny", seed=2)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "ab" * n}) + "\n" for n in (30, 3, 12, 7, 20, 1)))
    result = compare_backends(model, rows, PRESET, max_tokens=40, cancel=1)
    assert result["equal"], result


def _admitted(log: DecisionLog) -> list[int]:
    """Rows in the order of their first prompt chunk."""
    order: dict[int, None] = {}
    for line in list(log.lines())[1:]:
        for action in json.loads(line)["actions"]:
            for row, _, _, _ in action.get("chunks", []):
                order.setdefault(row)
    return list(order)
