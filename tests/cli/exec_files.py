"""Files of `batchgen exec` and its command, as the tests of it need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batchgen.cli import main


def write(path: Path, rows: list[dict[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(model: Path, rows: Path, output: Path, *extra: str) -> int:
    command = ["exec", "--model", str(model), "-i", str(rows), "-o", str(output), "--threads", "1"]
    return main([*command, *extra])
