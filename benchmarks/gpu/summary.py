"""The one JSON of `check.py` and the short table that it prints last. Measures nothing."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine

SCHEMA = 1
COMMIT = "BATCHGEN_COMMIT"  # of a checkout that travels without its git folder
QUERY = (
    "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,pcie.link.gen.max"
)


def document(found: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on: machine, GPU, driver, versions, commit. `found`: of `check.look`."""
    commit = machine.commit()
    if COMMIT in os.environ:  # a copy of a checkout may carry another commit's git folder
        commit["commit"] = os.environ[COMMIT]
    now = datetime.datetime.now(datetime.UTC)
    return {
        "schema": SCHEMA,
        "benchmark": "gpu check",
        "date": now.date().isoformat(),
        "time": now.time().isoformat("seconds"),
        **commit,
        "gpu": dict(found["gpu"] or {}),
        "driver": nvidia_smi(),
        "machine": machine.describe() | {"packages": found["versions"]},
    }


def nvidia_smi() -> dict[str, str]:
    """What the driver says of the first GPU, in its own words."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    values = [value.strip() for value in done.stdout.split(",")]
    return dict(zip(QUERY.split(","), values, strict=False))


def result_path(folder: Path, whole: Mapping[str, Any]) -> Path:
    """gpu-<gpu>-<date>-<commit>.json"""
    words = whole["gpu"].get("name", "none").lower().split()
    name = next((word for word in words if any(c.isdigit() for c in word)), "unknown")
    return folder / f"gpu-{name}-{whole['date']}-{whole['commit'][:10]}.json"


def lines(whole: Mapping[str, Any]) -> Iterator[str]:
    """A table for the end of a terminal: how pieces ended, then figures."""
    for label, entry in whole["pieces"].items():
        last = _last_line(entry["output"]) if label.startswith("tests/") else ""
        yield f"{label:24} {entry['status']:7} {entry['seconds']:6.1f} s  {last}".rstrip()
    for label, entry in whole["pieces"].items():
        result = entry.get("result")
        if not result:
            continue
        yield ""
        if label.startswith("ceilings/"):
            for name, one in result["ceilings"].items():
                shown = one.get("error") or f"{one['median'] / 1e9:12,.1f} G{one['unit']}"
                yield f"{name:12} {shown}"
        elif label.startswith("kernels/"):
            yield from (kernel_line(row) for row in result["rows"])
        else:
            yield f"{label}: {result.get('summary', 'no summary')}"


def kernel_line(row: Mapping[str, Any]) -> str:
    """One line of the kernel table: time, share of its ceiling and the target, torch's time."""
    head = f"{row['kernel']:18} {row['shape']:38}"
    if "seconds" not in row:
        return f"{head} {row['error'][:100]}"
    target = f" of {100 * row['target']:.0f} %" if row.get("target") else ""
    other = ""
    if "other_seconds" in row:
        times = row["other_seconds"] / row["seconds"]
        other = f"  {row['other']} {row['other_seconds'] * 1e6:,.1f} us, {times:.2f}x"
    elif "other_error" in row:
        other = f"  {row['other']}: {row['other_error'][:40]}"
    share = f"{100 * row['share']:5.1f} %{target} {row['ceiling']}"
    return f"{head} {row['seconds'] * 1e6:10,.1f} us {share}{other}"


def _last_line(text: str) -> str:
    found = text.strip().splitlines()
    return found[-1] if found else ""
