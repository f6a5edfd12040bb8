"""Checks a machine with a CUDA device and measures it: tests, ceilings, kernels, throughput.

    make gpu-wheels                               once, where packages can be had
    make gpu-check [ARGS="--only tests,ceilings"]

Needs no environment of its own: it runs with the Python that runs it, the checkout and .gpu-site
on the path. Every piece is a process of its own, its end is kept in FOLDER/state.json, and
`--skip-done` goes on where the last call ended. What all pieces said becomes one JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pieces import CELL_S, PEER_S, SITE, STAGES, Piece, chosen, paths, pieces, read_json
from summary import document, lines, result_path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 25 * 60.0
TAIL = 4000  # characters of a piece's output that the state keeps
DONE, FAILED, CUT, LEFT = "done", "failed", "cut", "left"
NEEDED = (
    *("numpy", "pandas", "pyarrow", "yaml", "msgspec", "simpy", "typer", "rich", "matplotlib"),
    *("torch", "triton", "safetensors", "tokenizers", "jinja2"),
    *("pytest", "hypothesis", "pytest_timeout", "xdist"),
)
LOOK = """
import importlib, json, sys
found = {"missing": [], "versions": {}, "gpu": None}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        found["versions"][name] = str(getattr(module, "__version__", ""))
    except Exception as error:
        known = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "" if known else f" ({type(error).__name__}: {error})"[:200]
        found["missing"].append(name + why)
try:
    import torch
    if torch.cuda.is_available():
        one = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": one.name,
            "multiprocessors": one.multi_processor_count,
            "memory_bytes": one.total_memory,
            "l2_bytes": one.L2_cache_size,
            "capability": f"{one.major}.{one.minor}",
            "cuda": torch.version.cuda,
        }
except ModuleNotFoundError:
    pass  # torch, which is among the missing
except Exception as error:
    found["missing"].append(f"CUDA ({type(error).__name__}: {error})"[:200])
print(json.dumps(found))
"""


def look(environment: dict[str, str]) -> dict[str, Any]:
    """What is installed and which GPU is there, by a process of its own: this one takes none of
    the device's memory."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *NEEDED],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"missing": [f"Python: {done.stderr[-200:]}"], "versions": {}, "gpu": None}
    return found


def obstacles(found: dict[str, Any]) -> list[str]:
    """Why nothing can be measured here."""
    reasons = []
    if found["gpu"] is None:
        reasons.append("there is no CUDA device that torch can use")
    if found["missing"]:
        remedy = "" if SITE.is_dir() else f"; {SITE.name} is not here: run 'make gpu-wheels'"
        reasons.append(f"missing: {', '.join(found['missing'])}{remedy}")
    return reasons


class State:
    """How each piece ended, kept in a file after each. Pieces of other commits do not count."""

    def __init__(self, path: Path, commit: str) -> None:
        self.path = path
        kept = read_json(path) or {}
        self.pieces: dict[str, Any] = {}
        if kept.get("commit") == commit:
            self.pieces = dict(kept["pieces"])  # type: ignore[call-overload]
        elif kept:
            print(f"what {path} says is of commit {kept.get('commit')}: begun anew")
        self.commit = commit

    def is_done(self, piece: Piece) -> bool:
        return bool(self.pieces.get(piece.label, {}).get("status") == DONE)

    def keep(self, piece: Piece, entry: dict[str, Any]) -> None:
        self.pieces[piece.label] = entry
        content = {"commit": self.commit, "pieces": self.pieces}
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path)


def run(piece: Piece, left_s: float, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """One piece: its end, its time, the end of its output and the JSON that it wrote."""
    if piece.gives is not None:
        (folder / piece.gives).unlink(missing_ok=True)  # of an earlier run
    begin = time.monotonic()
    log = folder / f"{piece.stage}-{piece.name}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            piece.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,  # so that its workers can be ended with it
        )
        try:
            code: int | None = process.wait(min(piece.limit_s, left_s))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    entry: dict[str, Any] = {
        "status": CUT if code is None else DONE if code == 0 else FAILED,
        "exit_code": code,
        "seconds": round(time.monotonic() - begin, 1),
        "output": text[-TAIL:],
    }
    if piece.gives is not None:
        entry["result"] = read_json(folder / piece.gives)
        if code == 0 and entry["result"] is None:
            entry["status"] = FAILED
    return entry


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "gpu-check")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only", help=f"some of {','.join(STAGES)}, or labels like kernels/small")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that all may take")
    parser.add_argument("--cell-seconds", type=float, default=CELL_S)
    parser.add_argument("--peer-seconds", type=float, default=PEER_S)
    parser.add_argument("--skip-done", action="store_true", help="what succeeded at this commit")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    given = parser.parse_args(argv)
    begin = time.monotonic()
    environment = paths(os.environ)
    try:
        every = pieces(given.folder.absolute(), given.cell_seconds, given.peer_seconds)
        todo = chosen(every, given.only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = look(environment)
    reasons = obstacles(found)
    if given.dry_run:
        for piece in todo:
            print(f"{piece.label:24} at most {piece.limit_s:4.0f} s  {' '.join(piece.command)}")
        for reason in reasons or ["nothing: run it without --dry-run"]:
            print(f"in the way: {reason}")
        return 0
    if reasons:
        print(f"error: {'; '.join(reasons)}", file=sys.stderr)
        return 2
    given.folder.mkdir(parents=True, exist_ok=True)
    header = document(found)
    state = State(given.folder / "state.json", header["commit"])
    for piece in todo:
        if given.skip_done and state.is_done(piece):
            print(f"{piece.label:24} done before", flush=True)
            continue
        left_s = given.seconds - (time.monotonic() - begin)
        if left_s < piece.least_s:
            print(f"{piece.label:24} {LEFT}: go on with --skip-done", flush=True)
            continue
        entry = run(piece, left_s, given.folder.absolute(), environment)
        state.keep(piece, entry)
        print(f"{piece.label:24} {entry['status']} after {entry['seconds']} s", flush=True)
    whole = header | {"pieces": state.pieces}
    path = result_path(given.results, whole)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print("\n".join([f"wrote {path}", "", *lines(whole)]))
    ended = [state.pieces.get(piece.label, {}).get("status") for piece in todo]
    return 0 if all(status == DONE for status in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
