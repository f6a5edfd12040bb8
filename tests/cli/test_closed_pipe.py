"""A reader that goes away (`| head`) ends a command in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    ["--help"],
    ["exec", "--help"],
    ["model", "show", "qwen3-32b"],
    ["model", "list"],
    ["model", "list", "--json"],
    ["policy", "list"],
    ["bench", "costs"],
    ["bench", "costs", "--json"],
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_nobody_reads(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "batchgen.cli", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=100,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    """Daemons start programs so: what was asked for is done, and the exit code says how."""
    command = f"{sys.executable} -P -m batchgen.cli model show qwen3-32b {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
