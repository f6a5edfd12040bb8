"""`--help` of a benchmark says whole sentences."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def test_help_is_whole() -> None:
    script = ROOT / "benchmarks" / "plans.py"
    told = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "misses.\n\noptions:" in re.sub(r"[ ]+", " ", told)


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_no_description_is_a_line_of_text(script: Path) -> None:
    """Lines end where they are full, sentences and paragraphs where something is said."""
    text = script.read_text(encoding="utf-8")
    for found in re.findall(r"description=.*__doc__.*", text):
        assert "splitlines" not in found
        assert '"\\n"' not in found
