"""A table of measurements as one document of errors, JSON-able. It prints nothing."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from batchgen.cost.measured import MeasuredCost
from batchgen.cost.silicon.assess import BARS, Assessment, assess
from batchgen.cost.silicon.clean import Cleaned, clean
from batchgen.cost.silicon.loop import Prediction, closed_loop, engine_cost
from batchgen.cost.silicon.rows import SHIPPED, read_rows
from batchgen.cost.silicon.setup import Setup
from batchgen.errors import UserError
from batchgen.layout import Layout
from batchgen.model import ModelSpec


def measure(path: Path = SHIPPED) -> tuple[int, Cleaned, Assessment]:
    """Rows of the file, what stays of them, and how wrong the predictions are.

    Raises DataError for another kind of file, UserError where no row stays.
    """
    rows = read_rows(path)
    costs: dict[tuple[ModelSpec, str, Layout], MeasuredCost] = {}

    def predict(one: Setup) -> Prediction:
        key = one.model, one.gpu.name, one.layout
        if key not in costs:
            costs[key] = engine_cost(one)
        return closed_loop(one, costs[key])

    cleaned = clean(rows, predict)
    if not cleaned.cases:
        why = max(cleaned.left_out, key=lambda reason: cleaned.left_out[reason])
        raise UserError(
            f"{path}: none of {len(rows):,} rows can be predicted, most for: {why}",
            remedy="give a table with aggregated rows of models of `batchgen model list`",
        )
    return len(rows), cleaned, assess(cleaned.cases)


def document(num_rows: int, cleaned: Cleaned, found: Assessment) -> dict[str, Any]:
    """What `batchgen bench silicon --out` writes."""
    guessed = sorted({case.setup.gpu.name for case in cleaned.cases} & _without_tables())
    return {
        "schema": 1,
        "benchmark": "bench silicon",
        "what": "mean inter-token time of closed loops, predicted / measured - 1",
        "rows": num_rows,
        "left_out": cleaned.left_out,
        "told": len(cleaned.cases),
        "launch_us": {name: 1e6 * launch_s for name, launch_s in found.launch_s.items()},
        "gpus_without_tables": guessed,
        "bars": {kind: asdict(bar) for kind, bar in BARS.items()},
        "tables": [asdict(row) for row in found.rows],
        "missed": found.missed,
    }


@functools.cache
def _without_tables() -> frozenset[str]:
    """GPUs of the catalog whose kernels are taken from another."""
    from batchgen.cost.operators import store
    from batchgen.hardware import gpu_names

    measured = {gpu for _, gpu, _ in store.shipped()}
    return frozenset(name for name in gpu_names() if name not in measured)
