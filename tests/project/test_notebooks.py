"""The notebooks: they run, what they show is of their code, and their text says what they show."""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
MOST_LINES = 30  # of a code cell
MOST_BYTES = 600_000  # of all notebooks
ABSOLUTE = re.compile(r"(?<![\w.)\]])/(home|tmp|root|usr|var|mnt|Users|private|work)\b")
LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w])")
SOURCES = ("OSDI 2026", "section 6")
"""Where something was published is told in the text alone."""


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook_runner", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNNER = load_runner()


@pytest.fixture(params=PATHS, ids=NAMES)
def stored(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = RUNNER.read(request.param)
    return found


def kinds(cell: dict[str, Any]) -> list[tuple[str, ...]]:
    """What a code cell shows, by kind of output."""
    return [(one["output_type"], *sorted(one.get("data", ()))) for one in cell["outputs"]]


def markdown(notebook: dict[str, Any]) -> list[str]:
    return [RUNNER.source(c) for c in notebook["cells"] if c["cell_type"] == "markdown"]


def test_there_are_the_two() -> None:
    assert NAMES == ["01_one_batch_on_128_gpus", "02_published_tables"]
    assert sum(path.stat().st_size for path in PATHS) < MOST_BYTES


def test_it_runs_small(stored: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, on fewer rows: the same code shows the same kinds of things."""
    monkeypatch.setenv(RUNNER.SMALL, "1")
    here = Path.cwd()
    after = RUNNER.executed(stored)
    assert Path.cwd() == here
    assert RUNNER.code_digest(after) == RUNNER.code_digest(stored)
    for one, other in zip(RUNNER.code_cells(stored), RUNNER.code_cells(after), strict=True):
        assert kinds(one) == kinds(other), RUNNER.source(one)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_shows_what_is_stored(stored: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, with the claims of its last cell."""
    monkeypatch.delenv(RUNNER.SMALL, raising=False)
    assert RUNNER.differences(stored, RUNNER.executed(stored)) == []


def test_outputs_are_of_this_code(stored: dict[str, Any]) -> None:
    """Who changes a cell runs `python notebooks/run.py`."""
    assert stored["metadata"]["batchgen"]["code_sha256"] == RUNNER.code_digest(stored)
    cells = RUNNER.code_cells(stored)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [one for cell in cells for one in cell["outputs"]]
    assert {one["output_type"] for one in outputs} <= {"stream", "execute_result"}
    pictures = [one["data"]["image/png"] for one in outputs if "image/png" in one.get("data", ())]
    assert len(pictures) >= 5
    assert all(base64.b64decode(text).startswith(b"\x89PNG") for text in pictures)


def test_no_place_of_a_machine_and_no_clock(stored: dict[str, Any]) -> None:
    shown = [text for cell in RUNNER.code_cells(stored) for text in RUNNER.texts(cell)]
    for text in [*shown, *(RUNNER.source(cell) for cell in stored["cells"])]:
        assert not ABSOLUTE.search(text), text
        assert "this run took" not in text  # wall-clock time of a simulation


def test_text_teaches_and_cells_are_short(stored: dict[str, Any]) -> None:
    texts = markdown(stored)
    assert all(text.strip() for text in texts)
    assert texts[0].startswith("# ")
    assert len(texts) >= len(RUNNER.code_cells(stored)) / 2
    for cell in RUNNER.code_cells(stored):
        assert len(cell["source"]) <= MOST_LINES, RUNNER.source(cell)


def test_links_lead_somewhere(stored: dict[str, Any]) -> None:
    for text in markdown(stored):
        for _, target in LINK.findall(text):
            if not target.startswith("http"):
                assert (FOLDER / target).resolve().is_file(), target


def test_numbers_in_the_text_are_shown_by_cells(stored: dict[str, Any]) -> None:
    """A number in a sentence stands in the code or in what it shows, so it changes with it."""
    cells = RUNNER.code_cells(stored)
    shown = " ".join(text for cell in cells for text in (RUNNER.source(cell), *RUNNER.texts(cell)))
    known = {number(found) for found in NUMBER.findall(shown.replace("_", ""))}
    for text in markdown(stored):
        plain = LINK.sub("", text)
        for source in SOURCES:
            plain = plain.replace(source, "")
        for found in NUMBER.findall(plain):
            assert number(found) in known, f"{found} in: {text}"


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_sentences_are_held_by_code(stored: dict[str, Any]) -> None:
    """The last cell has the claims; it ran when the outputs were stored."""
    last = RUNNER.code_cells(stored)[-1]
    assert RUNNER.source(last).count("assert ") >= 8
    assert "if not SMALL:" in RUNNER.source(last)


def cell(code: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "outputs": [], "source": [code]}


def test_runner_shows_prints_and_values_of_one_namespace() -> None:
    code = ["x = 20", "print('a\\nb')\nx + 1", "x = None\nx", "x;"]
    notebook = {"metadata": {}, "cells": [cell(text) for text in code]}
    after = RUNNER.executed(notebook)
    first, second, third, _ = RUNNER.code_cells(after)
    assert first["outputs"] == third["outputs"] == []
    assert RUNNER.texts(second) == ["a\nb\n", "21"]
    assert notebook["cells"][1]["outputs"] == []  # the argument is left alone
    again = RUNNER.executed(after)
    assert RUNNER.as_text(again) == RUNNER.as_text(after)
    changed = {
        "metadata": {},
        "cells": [cell("x = 20"), cell("print('c')\nx"), *after["cells"][2:]],
    }
    (line,) = RUNNER.differences(after, RUNNER.executed(changed))
    assert line.startswith("cell 2 ")


def test_runner_raises_what_a_cell_raises() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        RUNNER.executed({"metadata": {}, "cells": [cell("x = 0"), cell("1 / x")]})
    assert caught.traceback[-1].path == Path("<cell 2>") or "<cell 2>" in str(caught.traceback[-1])
