"""The parts that README and docs show pass `batchgen policy check`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from batchgen.cli import main

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/writing-a-policy-part.md")


@pytest.mark.parametrize("page", PAGES)
def test_parts_shown_keep_their_word(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "Part)" in code]
    assert shown
    for number, code in enumerate(shown):
        file = tmp_path / f"{Path(page).stem.replace('-', '_').lower()}_{number}.py"
        file.write_text(code, encoding="utf-8")
        assert main(["policy", "check", str(file), "--cases", "8"]) == 0, capsys.readouterr()
