"""batchgen as a peer: a job prepared once, run as often as asked."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from protocol import job, serve


def load() -> Callable[[], Sequence[int]]:
    from batchgen.cli.torch_threads import calm_threads

    calm_threads()
    from batchgen.exec.clock import WallClock
    from batchgen.exec.drive import drive
    from batchgen.exec.job import ExecJob
    from batchgen.exec.prepare import prepare

    asked = job()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with rows.open("w", encoding="utf-8") as file:
            for row in asked["requests"]:
                file.write(json.dumps(row | {"ignore_eos": True, "temperature": 0}) + "\n")
        prepared = prepare(
            ExecJob(
                model=Path(asked["model"]),
                input=rows,
                output=Path(folder) / "out.jsonl",
                policy=asked.get("policy", "batchgen"),
                overrides=tuple(tuple(pair) for pair in asked.get("overrides", ())),
                dtype="bfloat16",
                threads=asked["threads"],
            )
        )

    def run() -> Sequence[int]:
        prepared.table = prepared.fresh_table()
        ran = drive(prepared, WallClock())
        return [len(tokens) for tokens in ran.tokens.values()]

    return run


if __name__ == "__main__":
    serve("batchgen", load)
