"""Says what a measurement ran on: processor, memory, versions, commit, load. Measures no speed.

Standard library only: the parent of every measurement stays small, because Linux counts a parent's
memory at the fork towards the peak of its child.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "pandas", "pyarrow", "msgspec", "simpy", "typer", "torch")


def describe() -> dict[str, Any]:
    """The machine and the software as a JSON object."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def cpu_model() -> str:
    """Name of the processor as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def commit() -> dict[str, Any]:
    """The commit of the checkout and whether tracked files differ from it."""
    name = _git("rev-parse", "HEAD")
    return {
        "commit": name or "unknown",
        "changed": sorted(line[3:] for line in _git("status", "--porcelain", "-uno").splitlines()),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # not a git checkout: the result says "unknown"
    return done.stdout.rstrip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def publish(result: dict[str, Any], output: Path | None) -> None:
    """Print a result as JSON, and write it to `output` as well if that is given."""
    text = json.dumps(result, indent=2)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    print(text)
