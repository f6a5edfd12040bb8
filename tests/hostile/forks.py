"""Runs `batchgen` in a process that is forked from one where the commands are loaded: a case costs
milliseconds, and may end its process, close its streams or fill its disk. A JSON line per run in,
one out. Nothing here uses threads before it forks.

Task: argv, cwd, out, err (paths; null: into the answer), and where wanted stdin (a path; none:
empty), env (changes; null takes away), encoding (of the streams), closed (descriptors to close),
fsize (bytes that a file may have), memory (bytes beyond what it begins with), umask, uid,
gone (where it stands was removed), kill ([[after seconds, signal], ...]), seconds (until it is
killed). Answer: code (below 0 for a signal), late (it was killed), err (what it said).
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

LOADED = (
    *("encodings.utf_8_sig", "encodings.ascii", "encodings.idna", "encodings.latin_1"),
    *("numpy", "pandas", "pyarrow.parquet", "simpy", "msgspec", "rich.console", "typer", "yaml"),
    *("torch", "jinja2", "tokenizers", "safetensors", "batchgen.exec.run", "batchgen.exec.profile"),
    *("batchgen.sim.run", "batchgen.layout_search", "batchgen.trace.schema", "batchgen.replay"),
)
COMMANDS = (
    *("sim", "sweep", "exec", "job", "serve", "validate", "profile", "plan", "policy", "trace"),
    *("model", "report", "bench"),
)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def child(task: dict[str, Any], heard: int) -> int:
    """The command, in a process of its own."""
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, value in task.get("env", {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.chdir(task["cwd"])
    stdin = task.get("stdin") or os.devnull
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    os.dup2(os.open(task["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(heard if task["err"] is None else os.open(task["err"], os.O_WRONLY), 2)
    encoding = task.get("encoding", "utf-8")  # what a locale or PYTHONIOENCODING gives
    # ruff: noqa: SIM115
    sys.stdin = open(0, encoding=encoding, closefd=False)
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)
    sys.stderr = open(2, "w", 1, encoding, "backslashreplace", closefd=False)
    if "fsize" in task:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does when it starts
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["fsize"], task["fsize"]))
    if "memory" in task and Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + task["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if "umask" in task:
        os.umask(task["umask"])
    if "uid" in task:
        os.setgroups([])
        os.setgid(task["uid"])
        os.setuid(task["uid"])
    for number in task.get("closed", []):  # as Python finds it when it starts
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)
        os.close(number)
    if task.get("gone"):  # where it stands was removed
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
    from batchgen import cli

    check = cli._check_text  # the first thing done where signals are heard

    def hear(argv: Sequence[str]) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        check(argv)

    cli._check_text = hear  # type: ignore[assignment]
    try:
        return cli.main(task["argv"])
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One task, waited for. What it says on stderr comes through a pipe, which has no limits."""
    hearing, heard = os.pipe()
    os.set_blocking(hearing, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the command has begun
    one = os.fork()
    if not one:
        code = 99
        try:
            code = child(task, heard)
            if sys.stdout is not None:
                sys.stdout.flush()  # as Python does at the end
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            with suppress(Exception):
                sys.stderr.flush()
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.close(heard)
    pieces: list[bytes] = []
    late = False
    began = time.monotonic()
    waiting = [(began + after, getattr(signal, name)) for after, name in task.get("kill", [])]
    limit = time.monotonic() + task.get("seconds", 90)
    pause = 0.001
    while True:
        done, status = os.waitpid(one, os.WNOHANG)
        with suppress(BlockingIOError):
            while piece := os.read(hearing, 1 << 16):
                pieces.append(piece)
        if done:
            break
        while waiting and time.monotonic() > waiting[0][0]:
            os.kill(one, waiting.pop(0)[1])
        if not late and time.monotonic() > limit:
            os.killpg(one, signal.SIGKILL)
            late = True
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    os.close(hearing)
    err = b"".join(pieces).decode("utf-8", "backslashreplace")
    return {"code": os.waitstatus_to_exitcode(status), "late": late, "err": err}


def warm() -> None:
    """What the first call of each command makes, made before: commands that are refused at once."""
    from batchgen.cli import main

    none = "/none"
    for argv in (
        ["sim", "--trace", none],
        ["plan", "--trace", none],
        ["sweep", none],
        ["exec", "--model", none, "-i", none, "-o", none],
        ["trace", "stats", none],
        ["trace", "devices", "stats", none],
        ["trace", "generate", "-o", none, "-n", "1", "--part", "x"],
        ["model", "show", "none"],
        ["validate", "replay", none, "--no-fresh"],
        ["validate", "input", none],
        ["job", "status", none],
        ["report", none],
    ):
        with redirect_stderr(io.StringIO()):
            assert main(argv) == 2, argv


if __name__ == "__main__":
    for module in (*LOADED, *(f"batchgen.cli.{name}" for name in COMMANDS)):
        import_module(module)
    warm()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
