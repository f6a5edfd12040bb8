"""The picture and the table of a sweep on rows made by hand, and the page of docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from batchgen.catalog.systems import system_names
from batchgen.cli import main
from batchgen.sweep import picture
from batchgen.sweep.picture import draw
from batchgen.sweep.read import read_sweep
from batchgen.sweep.table import cells, lines, markdown, slowdown, trouble_lines, write_parquet

ROOT = Path(__file__).parents[2]


def row(devices: str, policy: str, seed: int, bct_s: float, **more: Any) -> dict[str, Any]:
    axes = {"devices": devices, "gpus": 4, "layout_asked": "tp1", "policy": policy}
    metrics = {"bct_s": bct_s, "done99_s": bct_s / 2, "tail10_s": bct_s / 4, "busy_fraction": 0.5}
    causes = {"tail_long_rows_s": bct_s / 16, "tail_memory_s": 3 * bct_s / 16}
    known = {"options": "plain", "seed": seed, "error": "", "failed_rows": 0}
    return axes | known | metrics | causes | more


def wrong(devices: str, policy: str, seed: int) -> dict[str, Any]:
    axes = {"devices": devices, "gpus": 4, "layout_asked": "tp1", "policy": policy}
    return axes | {"options": "plain", "seed": seed, "error": "too | small"}


ROWS = [
    row("healthy", "vllm", 0, 10.0),
    row("healthy", "vllm", 1, 30.0),
    row("healthy", "orca", 0, 50.0),
    wrong("healthy", "orca", 1),
    row("slow", "vllm", 0, 40.0),
    row("slow", "vllm", 1, 40.0),
    row("slow", "orca", 0, 90.0, failed_rows=3),
    row("slow", "orca", 1, 100.0),
]


def test_cells_are_over_seeds() -> None:
    found = cells(ROWS)
    assert [len(cell.runs) for cell in found] == [2, 2, 2, 2]
    assert found[0].spread("bct_s") == (20.0, 10.0, 30.0)
    assert slowdown(found[2], found) == 2.0
    # Seed 0 has failed rows, seed 1 failed when healthy: nothing to compare.
    assert slowdown(found[3], found) is None
    assert found[3].spread("bct_s") == (100.0, 100.0, 100.0)
    assert trouble_lines(found) == [
        "healthy, orca: 1 of 2 runs: too | small",
        "slow, orca: 3 rows failed",
    ]
    heads, told = lines(found)
    assert all(len(line) == len(heads) for line in told)
    assert told[0][heads.index("tail is mostly")] == "memory 75 %"
    assert markdown(found).count("\n") == 6
    assert "too / small" in markdown(found)


def test_one_run_needs_no_axis() -> None:
    heads, told = lines(cells(ROWS[:1]))
    assert heads[:3] == ["policy", "completion time", "99 % done"]
    assert told[0][0] == "vllm"


@pytest.mark.parametrize("gpus", [(4,), (4, 8)])
def test_pictures_are_the_same_each_time(tmp_path: Path, gpus: tuple[int, ...]) -> None:
    rows = [{**one, "gpus": number} for number in gpus for one in ROWS]
    paths = [draw(cells(rows), "title", tmp_path / name) for name in ("a.png", "b.png")]
    assert paths[0] is not None
    assert paths[1] is not None
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert imread(paths[0]).shape[1] > 800
    assert draw(cells([ROWS[3]]), "title", tmp_path / "none.png") is None


@pytest.mark.parametrize("gpus", [(4,), (4, 8)])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:2] + ROWS[4:6]])
def test_the_legend_is_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: tuple[int, ...], rows: list[Any]
) -> None:
    """However narrow; and it speaks of failed runs where some failed."""
    seen: list[tuple[bool, list[str]]] = []

    def look(figure: Any, path: Path) -> Path:
        figure.draw_without_rendering()
        legend = figure.legends[0]
        box, whole = legend.get_window_extent(), figure.bbox
        seen.append((box.x0 >= 0 and box.x1 <= whole.x1, [t.get_text() for t in legend.texts]))
        return path

    monkeypatch.setattr(picture.style, "save", look)
    many = [
        {**one, "gpus": number, "layout_asked": layout, "options": options}
        for number in gpus
        for layout in ("rule", "dpa32+ep32,dp2")
        for options in ("plain", "small expert batches")
        for one in rows
        if one["devices"] == "healthy" or rows is ROWS
    ]
    assert draw(cells(many), "title", tmp_path / "a.png") is not None
    inside, words = seen[0]
    assert inside
    assert ("a run failed" in words) == (rows is ROWS and len(gpus) == 1)


def test_an_option_has_one_colour_in_all_layouts() -> None:
    many = [
        {**ROWS[0], "layout_asked": layout, "options": options}
        for layout in ("tp1", "tp2")
        for options in ("plain", "other", "third")
    ]
    looks = picture._variants(cells(many))
    assert len({colour for _, colour, _ in looks.values()}) == 3
    assert len({(key[2], colour) for key, (_, colour, _) in looks.items()}) == 3
    assert len({look[1:] for look in looks.values()}) == 6


def test_columns_have_types(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_parquet(ROWS, tmp_path / "x.parquet")
    kinds = {field.name: str(field.type) for field in pq.read_table(tmp_path / "x.parquet").schema}
    assert kinds["devices"] == kinds["error"] == "string"
    assert kinds["gpus"] == kinds["failed_rows"] == "int64"
    assert kinds["bct_s"] == "double"


@pytest.mark.parametrize("name", ["ablations", "ablations-memory"])
def test_an_ablation_sweep_takes_each_primitive_away(name: str) -> None:
    sweep = read_sweep(str(ROOT / "examples" / "sweeps" / f"{name}.yaml"))
    ablations = {one for one in system_names() if one.startswith(("batchgen-no-", "batchgen-in-"))}
    assert sweep.policies[0] == "batchgen"  # the first bar of the picture
    assert set(sweep.policies) == {"batchgen", *ablations}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stragglers", "ablations", "ablations-memory"])
def test_the_page_is_what_the_example_gives(tmp_path: Path, name: str) -> None:
    example = str(ROOT / "examples" / "sweeps" / f"{name}.yaml")
    assert main(["sweep", example, "--out", str(tmp_path / "out"), "--progress", "off"]) == 0
    page = (ROOT / "docs" / "stragglers.md").read_text(encoding="utf-8")
    table = page.split(f"`batchgen sweep examples/sweeps/{name}.yaml` -->\n")[1]
    assert table.split(f"<!-- /{name} -->")[0] == (tmp_path / "out" / "table.md").read_text()
