"""The tables of docs/ are what the code says: presets and parts exactly, modules by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from batchgen.policy.base import SLOTS
from batchgen.policy.presets import PARTS, PRESETS

ROOT = Path(__file__).parents[2]


def rows_of(mark: str, page: str) -> list[list[str]]:
    """Cells of the table between the marks, without the rule under its head."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    body = text.split(f"<!-- {mark}: ")[1].split(f"<!-- /{mark} -->")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def test_preset_by_part() -> None:
    head, *rows = rows_of("presets", "writing-a-policy-part.md")
    names = [cell.strip("`") for cell in head[1:]]
    assert names == list(PRESETS)
    written = {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
    for slot in SLOTS:
        for name, preset in PRESETS.items():
            cell, options = written[slot][name], preset.options.get(slot, {})
            assert cell.split(" (")[0] == preset.parts[slot], (slot, name)
            for option, value in options.items():
                assert f"{option}={value}" in cell


def test_all_parts_are_described() -> None:
    _, *rows = rows_of("parts", "writing-a-policy-part.md")
    assert [(row[0], row[1].strip("`")) for row in rows] == [
        (slot, name) for slot in SLOTS for name in PARTS[slot]
    ]
    assert all(row[2] for row in rows)


def test_tables_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_tables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_published_times_are_those_of_the_last_result() -> None:
    page = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    path = max((ROOT / "benchmarks" / "results").glob("published-*.json"))
    assert path.name in page
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        ratio = cell["simulated_minutes"] / cell["minutes"]
        label = cell.get("name") or cell["system"]
        found = [
            line
            for line in page.splitlines()
            if line.startswith(f"| {cell['load']} | {cell['gpus']} {cell['cluster']} | {label} |")
        ]
        assert [line.endswith(f"| {ratio:.2f} |") for line in found] == [True], label


def test_figures_of_pages_are_those_of_the_newest_results() -> None:
    results = ROOT / "benchmarks" / "results"
    newest = {
        name: json.loads(max(results.glob(f"{name}-[0-9]*.json")).read_text(encoding="utf-8"))
        for name in ("engines", "published")
    }
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    names = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
    lines = {" ".join(line.lower().split()) for line in page.splitlines()}
    for one in newest["engines"]["silicon"]["tables"]:
        if one["table"] not in ("all", "GPU", "engine", "model"):
            continue
        errors = one["errors"]
        physics, left_out, corrected = (
            f"{100 * errors[key]['median']:.1f} / {100 * errors[key]['p90']:.1f}"
            for key in ("physics", "left out", "corrected")
        )
        bias = f"{100 * errors['physics']['bias']:+.1f}"
        name = names.get(one["name"], one["name"]).lower()
        line = f"| {name} | {one['count']:,} | {physics} | {bias} | {left_out} | {corrected} |"
        assert line in lines
    mean = f"{100 * newest['published']['mean_absolute_error']:.1f} %"
    assert f"Mean error {mean}" in (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    believed = (ROOT / "docs" / "what-to-believe.md").read_text(encoding="utf-8")
    assert f"| mean {mean}, worst" in believed
