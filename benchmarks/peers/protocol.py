"""How a peer's process is asked: it says that it is ready, then runs its batch once per line.

Standard library only: it is imported in the peers' environments too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def serve(name: str, load: Callable[[], Callable[[], Sequence[int]]]) -> None:
    """`load` returns a function that runs the batch and gives the number of tokens of each row."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; the answers have their own way

    def say(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    begin = time.perf_counter()
    try:
        run = load()
    except Exception as error:  # a peer that does not work here is a result too
        say(name=name, error=f"{type(error).__name__}: {error}"[:500])
        return
    say(name=name, load_s=time.perf_counter() - begin)
    for _ in sys.stdin:
        begin, cpu = time.perf_counter(), time.process_time()
        try:
            counts = run()
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}"[:500])
            return
        say(
            wall_s=time.perf_counter() - begin,
            cpu_s=time.process_time() - cpu,
            tokens=sum(counts),
            rows=len(counts),
        )


def job() -> dict[str, Any]:
    """What the parent asks for: {"model", "threads", "requests", ...}."""
    with open(sys.argv[1], encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found
