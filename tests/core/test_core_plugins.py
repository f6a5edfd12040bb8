"""A package outside the repository adds a part and a preset through entry points."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from core_cases import Case, Row, run
from core_invariants import Invariants

from batchgen.errors import UserError
from batchgen.policy.presets import build_policy, find_preset, preset_names

PACKAGE = Path(__file__).with_name("plugin_package")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as pip would leave it: its module on the path, its entry points beside."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "evens_first-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evens-first\nVersion: 1.0\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    monkeypatch.delitem(sys.modules, "evens_first", raising=False)


CASE = Case(preset="evens", rows=(Row(prompt=8, budget=4, output=4),) * 6, seqs=1)


def first_passes(case: Case) -> dict[int, int]:
    outcome = run(case, checker=Invariants(case))
    first: dict[int, int] = {}
    for q, _, chunks, _ in outcome.passes()[0]:
        for row, *_ in chunks:
            first.setdefault(row, q)
    return first


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("line", ["raise SystemExit(0)", "1 / 0", "raise ValueError('\\ud800')"])
def test_a_package_that_does_not_load_is_one_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "evens_first.py").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    with pytest.raises(UserError, match=r"batchgen.presets:evens cannot be loaded \(\w+") as caught:
        find_preset("evens")
    assert str(caught.value).isprintable()
    with pytest.raises(UserError, match=r"batchgen.parts:order.evens-first cannot be loaded"):
        build_policy(find_preset("vllm"), {"order.part": "evens-first"})


@pytest.mark.usefixtures("installed")
def test_the_simulator_runs_a_preset_of_a_package() -> None:
    assert "evens" in preset_names()
    first = first_passes(CASE)
    assert sorted(first, key=lambda row: (first[row], row)) == [0, 2, 4, 1, 3, 5]
    reference = run(CASE, reference=True)
    assert reference.everything() == run(CASE).everything()


@pytest.mark.usefixtures("installed")
def test_a_part_of_a_package_fits_a_preset_of_ours_and_takes_options() -> None:
    overrides = {"order.part": "evens-first", "order.divisor": "3"}
    first = first_passes(Case(preset="vllm", rows=CASE.rows, seqs=1, overrides=overrides))
    assert sorted(first, key=lambda row: (first[row], row)) == [0, 3, 1, 2, 4, 5]


def test_without_the_package_the_names_are_unknown() -> None:
    with pytest.raises(UserError, match="unknown policy 'evens'"):
        find_preset("evens")
    with pytest.raises(UserError, match=r"unknown order part 'evens-first'.*order\.evens-first"):
        build_policy(find_preset("vllm"), {"order.part": "evens-first"})
