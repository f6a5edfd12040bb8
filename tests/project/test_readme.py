"""README and docs keep their word: their tested commands run, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def shell_blocks(text: str) -> list[str]:
    """Shell blocks that stand right after a line with the comment "test"."""
    return re.findall(r"^<!-- test -->\n```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def python_blocks(text: str) -> list[str]:
    """The same of Python."""
    pattern = r"^<!-- test -->\n```python\n(.*?)^```"
    return re.findall(pattern, text, flags=re.DOTALL | re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which the README's relative paths lead to the repository, except for out/."""
    for name in ("traces", "examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


BLOCKS = {
    f"{page.name}-{number}": block
    for page in PAGES
    for number, block in enumerate(shell_blocks(page.read_text(encoding="utf-8")))
}
PROGRAMS = {
    f"{page.name}-{number}": block
    for page in PAGES
    for number, block in enumerate(python_blocks(page.read_text(encoding="utf-8")))
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_run(name: str, checkout: Path) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[name]],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", BLOCKS)
def test_quick_commands_run(name: str, checkout: Path) -> None:
    pytest.importorskip("torch")
    # The README assumes an activated environment: its commands come from where python is.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", BLOCKS[name]],
        cwd=checkout,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_uses_have_tested_commands() -> None:
    text = "".join(block for name, block in BLOCKS.items() if name.startswith("README"))
    assert "batchgen sim " in text
    assert "batchgen exec " in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if heading:
            lines = path.read_text(encoding="utf-8").splitlines()
            found = {anchor(line.lstrip("#")) for line in lines if line.startswith("#")}
            assert heading in found, f"{page.name}: {target}"


def test_results_table_is_that_of_the_data() -> None:
    """`python paper_figs/headline.py` wrote both; nobody edited one of them by hand."""
    code = (
        "import sys; sys.path.insert(0, 'paper_figs'); import headline; "
        "print(headline.markdown(headline.read_csv(headline.DATA / 'headline.csv')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_has_a_mention() -> None:
    from batchgen.cli.group import COMMANDS, LazyGroup

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in LazyGroup.list_commands(None, None):  # type: ignore[arg-type]
        assert name in COMMANDS
        assert f"batchgen {name}" in text
