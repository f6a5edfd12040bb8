"""A reader that goes away (`| head`) ends a command in silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMANDS = (
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
