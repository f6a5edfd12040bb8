"""Where the tail of a run comes from: words and columns of the causes. `batchgen.sim.tail` finds
them, since only the simulator knows what a pass takes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.report import text

CAUSES = {
    "long_rows": "long rows",
    "slow_devices": "slow devices",
    "imbalance": "imbalance",
    "memory": "memory",
    "barrier": "barrier",
    "other_rows": "other rows",
}
"""Cause -> what people call it. docs/simulation.md defines them."""


def column(cause: str) -> str:
    """The name of the metric."""
    return f"tail_{cause}_s"


def tail_line(summary: Mapping[str, Any]) -> str | None:
    """'20.1 s long rows, 5.5 s slow devices': all of the tail; None: nobody knows."""
    parts = {cause: summary.get(column(cause)) for cause in CAUSES}
    known = {cause: float(part) for cause, part in parts.items() if part is not None}
    tail = float(summary["tail10_s"])
    if not known or not tail:
        return None
    shown = sorted((c for c in known if known[c] >= 5e-3 * tail), key=lambda c: -known[c])
    return ", ".join(f"{text.duration(known[cause])} {CAUSES[cause]}" for cause in shown)
