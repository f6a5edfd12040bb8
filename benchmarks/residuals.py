"""Errors of the benchmarks' results as data for reports: no measurement, a selection.

    python benchmarks/residuals.py        writes batchgen/catalog/residuals.json, and its table
                                          in docs/what-to-believe.md

reads the newest of benchmarks/results/{costs,engines,published}-*.json; one that is missing is left
out. Of `costs` it takes the rows over all GPUs. Of the others every row that has

    "errors": {"count", "median", "p90"}      |predicted / measured - 1|
    "what"                                     the quantity ("completion time", "time per token")

and, where it is of some runs only, "costs", "cluster", "gpu", "engine", "model_kind" (dense, moe,
latent), and "guessed" (whether kernels of that GPU were not measured).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "what-to-believe.md"
TARGET = ROOT / "batchgen" / "catalog" / "residuals.json"
KERNELS = {
    "gemm": "products",
    "decode_attention": "attention of decodes",
    "prefill_attention": "attention of prompts",
    "mla_decode": "latent attention of decodes",
    "mla_prefill": "latent attention of prompts",
    "experts": "routed experts",
    "collectives": "collectives",
}
LEAST_POINTS = 5  # fewer say nothing of a spread
KEYS = ("costs", "cluster", "gpu", "engine", "model_kind")


def newest(benchmark: str, folder: Path = RESULTS) -> Path | None:
    """The last result of a benchmark by its date."""
    return max(folder.glob(f"{benchmark}-[0-9]*.json"), default=None, key=lambda path: path.name)


def rows_of_costs(document: dict[str, Any], result: str) -> list[dict[str, Any]]:
    """Errors of kernels on shapes left out; on GPUs left out, for GPUs without measurements."""
    return [
        {
            "source": "bench costs",
            "what": f"single kernels, not of runs; worst are {KERNELS[row['operator']]}",
            "kernel": row["operator"],
            "costs": "measured",
            "guessed": row["left_out"] == "gpu",
            **_errors(row["errors"]),
            "result": result,
        }
        for row in document["rows"]
        if row["gpu"] == "all" and row["left_out"] in ("shapes", "gpu")
    ]


def rows_of_runs(document: dict[str, Any], source: str, result: str) -> list[dict[str, Any]]:
    """Errors of whole runs or of points of their operation, as far as the result gives them."""
    return [
        {
            "source": source,
            "what": row.get("what", "completion time"),
            **{key: row[key] for key in KEYS if isinstance(row.get(key), str)},
            **({"guessed": row["guessed"]} if isinstance(row.get("guessed"), bool) else {}),
            **_errors(row["errors"]),
            "result": result,
        }
        for row in document.get("rows", ())
        if isinstance(row, dict) and _has_errors(row.get("errors"))
        if row["errors"]["count"] >= LEAST_POINTS
    ]


def _has_errors(errors: object) -> bool:
    return isinstance(errors, dict) and all(
        isinstance(errors.get(key), int | float) for key in ("count", "median", "p90")
    )


def _errors(errors: dict[str, Any]) -> dict[str, Any]:
    """Five digits; the rest is noise."""
    return {
        "count": errors["count"],
        **{key: float(f"{errors[key]:.5g}") for key in ("median", "p90")},
    }


def collect(folder: Path = RESULTS) -> dict[str, Any]:
    """The content of the catalog's file."""
    rows: list[dict[str, Any]] = []
    for name in ("engines", "published", "costs"):
        path = newest(name, folder)
        if path is None:
            continue
        document = json.loads(path.read_text(encoding="utf-8"))
        if name == "costs":
            rows += rows_of_costs(document, path.name)
        else:
            rows += rows_of_runs(document, f"bench {name}", path.name)
    return {"schema": 1, "made_by": "python benchmarks/residuals.py", "rows": rows}


def table(rows: list[dict[str, Any]]) -> str:
    """What is known, the nearest to a whole run first."""
    heads = ("of", "runs", "median", "90th percentile", "points", "source")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        runs = [row[key] for key in KEYS if key in row]
        if "guessed" in row:
            runs.append("GPUs not measured" if row["guessed"] else "measured GPUs")
        what = KERNELS[row["kernel"]] if "kernel" in row else row["what"]
        errors = " | ".join(f"{100 * row[key]:.1f} %" for key in ("median", "p90"))
        source = f"`{row['source']}`, {row['result']}"
        lines.append(f"| {what} | {', '.join(runs)} | {errors} | {row['count']:,} | {source} |")
    return "\n".join(lines)


def with_table(text: str, rows: list[dict[str, Any]]) -> str:
    """The page with the table between its marks."""
    new, found = re.subn(
        r"(<!-- residuals: .*?-->\n).*?(<!-- /residuals -->)",
        lambda match: f"{match[1]}\n{table(rows)}\n\n{match[2]}",
        text,
        flags=re.DOTALL,
    )
    if found != 1:
        raise SystemExit(f"{PAGE} has {found} pairs of residuals marks, not one")
    return new


def main() -> int:
    document = collect()
    TARGET.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = with_table(PAGE.read_text(encoding="utf-8"), document["rows"])
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {TARGET.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
