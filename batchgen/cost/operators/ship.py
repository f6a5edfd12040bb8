"""Makes the two files that the project ships of the tables: fitted surfaces, and a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from batchgen.cost.operators import sample, store
from batchgen.cost.operators.assess import pooled
from batchgen.cost.operators.fitted import Fitted, fit
from batchgen.cost.operators.kinds import OPERATORS
from batchgen.cost.operators.points import Points

SOURCE = (
    "measured vLLM kernels of ai-dynamo/aiconfigurator (Copyright NVIDIA CORPORATION & AFFILIATES, "
    "Apache-2.0)"
)


def ship(
    tables: Sequence[Points], folder: Path, say: Callable[[str], None] = lambda line: None
) -> tuple[Path, Path]:
    """Write both files into a folder; returns their paths. Fits see no shape of the sample."""
    fitted: dict[store.Key, Fitted] = {}
    seen, left = [], []
    for points in tables:
        say(f"fit {points.operator} {points.gpu} {points.variant}")
        ours, shipped = sample.split(points)
        seen.append(ours)
        left.append(shipped)
        operator = OPERATORS[points.operator]
        fitted[points.operator, points.gpu, points.variant] = fit(operator, [ours])
    for name, variant in sorted({(one.operator, one.variant) for one in seen}):
        say(f"fit {name} {variant} of all GPUs")
        alike = [one for one in seen if (one.operator, one.variant) == (name, variant)]
        fitted[name, store.ANY_GPU, variant] = fit(OPERATORS[name], pooled(alike))
    paths = folder / store.SHIPPED.name, folder / sample.SHIPPED.name
    counts = {
        f"{one.operator} {one.gpu} {one.variant}": len(one) for one in tables
    }  # points of the tables, those of the sample among them
    store.save(paths[0], fitted, {"source": SOURCE, "points": counts})
    sample.save(paths[1], left)
    return paths
