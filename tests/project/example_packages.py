"""Packages of examples/, built and put on the path as installed ones are."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def installed(name: str, folder: Path) -> Path:
    """The unpacked wheel of examples/NAME, a folder for the Python path."""
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT / "examples" / name,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def batchgen(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own that finds the package."""
    return subprocess.run(
        [sys.executable, "-m", "batchgen", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
