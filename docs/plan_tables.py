"""The table of docs/planning.md, from the newest result of `benchmarks/plans.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def newest(folder: Path = RESULTS) -> Path | None:
    """The last result by its date."""
    return max(folder.glob("plans-[0-9]*.json"), default=None, key=lambda path: path.name)


def plans() -> str:
    """What the search found beside the best of every plan, and deadlines beside a grid."""
    path = newest()
    if path is None:
        return "Not measured yet."
    result = json.loads(path.read_text(encoding="utf-8"))
    rows, deadlines = result["plans"], result["deadlines"]
    within = sum(row["ratio"] <= result["bar"] for row in rows)
    equal = sum(one["equal"] for one in deadlines)
    head = (
        f"{within} of {len(rows)} winners are within {100 * (result['bar'] - 1):.0f} % of the best "
        f"of every plan: on average {100 * (result['mean_ratio'] - 1):.2f} % behind it, at most "
        f"{100 * (result['worst_ratio'] - 1):.1f} %. {equal} of {len(deadlines)} deadlines get the "
        f"cluster of a grid in which every layout of every cluster was simulated "
        f"([result](../benchmarks/results/{path.name}), seed {result['seed']})."
    )
    lines = [
        head,
        "",
        "| model | machines | policy | rows | axes | plans | simulated by the search | winner | "
        "behind the best |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_row(row) for row in rows]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    cells = [
        row["model"],
        f"{row['gpus']} x {row['gpu']}",
        f"`{row['policy']}`",
        f"{row['rows']:,}",
        ", ".join(row["axes"]),
        str(row["plans"]),
        str(row["simulations_of_the_search"]),
        row["winner"].replace("plan.", ""),
        f"{100 * (row['ratio'] - 1):.2f} %",
    ]
    return f"| {' | '.join(cells)} |"


def marks() -> dict[str, dict[str, Callable[[], str]]]:
    """Tables by page and mark."""
    return {"docs/planning.md": {"plans": plans}}
