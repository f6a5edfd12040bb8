"""The kernel table: time of each kernel at large shapes, share of the ceilings, torch beside it.

    python3 benchmarks/gpu/kernels.py [--only attention,experts,small] [--match TEXT]
        [--ceilings JSON] [--out JSON]

Needs a CUDA device. Ceilings are those of `ceilings.py` on the same machine, measured anew (two of
them, a second) without a file. A line that fails says why and costs no other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ceilings import measure as measure_ceilings
from cell import COPY, MATMUL, Cell, measure
from summary import kernel_line

from batchgen.exec.kernels.launching import INTERPRETED

GROUPS = {
    "attention": "shapes_attention",
    "experts": "shapes_experts",
    "small": "shapes_small",
}


def cells(groups: Sequence[str], match: str = "") -> list[Cell]:
    """Lines of the groups whose kernel or shape holds `match`."""
    found: list[Cell] = []
    for group in groups:
        found += importlib.import_module(GROUPS[group]).CELLS
    return [cell for cell in found if match in f"{cell.kernel} {cell.shape}"]


def read_ceilings(path: Path | None) -> dict[str, float]:
    """Bytes/s of copies and FLOP/s of products."""
    entries: dict[str, Any] = {}
    if path is not None and path.exists():
        entries = json.loads(path.read_text(encoding="utf-8"))["ceilings"]
    if not all("median" in entries.get(name, {}) for name in (COPY, MATMUL)):
        entries = measure_ceilings(None)
    return {name: entries[name]["median"] for name in (COPY, MATMUL)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(GROUPS))
    parser.add_argument("--match", default="", help="text of a kernel or a shape")
    parser.add_argument("--ceilings", type=Path)
    parser.add_argument("--out", type=Path, help="JSON, written anew after each line")
    given = parser.parse_args()
    groups = given.only.split(",")
    unknown = [group for group in groups if group not in GROUPS]
    if unknown or INTERPRETED or not torch.cuda.is_available():
        why = f"--only '{unknown[0]}' is none of {', '.join(GROUPS)}" if unknown else ""
        print(f"error: {why or 'kernels are not compiled here: no CUDA device'}", file=sys.stderr)
        return 2
    ceilings = read_ceilings(given.ceilings)
    rows: list[dict[str, Any]] = []
    for cell in cells(groups, given.match):
        rows.append(measure(cell, torch.device("cuda"), ceilings))
        torch.cuda.empty_cache()
        print(kernel_line(rows[-1]), flush=True)
        if given.out is not None:
            content = {"used_ceilings": ceilings, "rows": rows}
            given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
