"""Runs `batchgen exec` again and again in processes that begin with torch loaded: each one is
forked, so that a test may kill many of them. Reads a JSON line per run, answers with one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from batchgen.errors import UserError


def answered(journal: Path) -> int:
    """Rows in a journal that another process writes."""
    from batchgen.job.journal import read_counts

    try:
        return sum(read_counts(journal).values())
    except UserError:  # not there yet, or not any more
        return 0


def one(task: dict[str, Any]) -> dict[str, Any]:
    """{argv, err, journal, kill: [[seconds, rows, signal], ...]} -> {code, s}; code is below 0 for
    a signal. A signal is sent after so many seconds, and not before so many rows are answered."""
    began = time.monotonic()
    child = os.fork()
    if not child:
        err = os.open(task["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        from batchgen.cli import main

        code = 99
        try:
            code = main(task["argv"])
        finally:
            sys.stderr.flush()
            os._exit(code)
    for seconds, rows, name in task["kill"]:
        until = time.monotonic() + seconds
        while time.monotonic() < until or answered(Path(task["journal"])) < rows:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        os.kill(child, getattr(signal, name))
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "s": time.monotonic() - began}


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(one(json.loads(line))), flush=True)
