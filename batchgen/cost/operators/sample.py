"""A part of the tables that travels with the project: whole shapes that its fits have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from batchgen.cost.operators.kinds import OPERATORS
from batchgen.cost.operators.points import Points
from batchgen.errors import DataError

SHIPPED = Path(__file__).parents[2] / "catalog" / "operators_sample.parquet"
PART = 0.05  # of the shapes of a table
FEWEST_SHAPES = 2
MOST_POINTS = 1200  # of a table
_OWN = ("operator", "gpu", "variant", "seconds")


def split(points: Points) -> tuple[Points, Points]:
    """Points of most shapes, to be fitted, and of the others, to be shipped: no shape is in both.
    Of many shipped points only some are kept."""
    rng = np.random.default_rng(1)
    groups = points.groups(OPERATORS[points.operator].shape)
    shapes = int(groups.max()) + 1
    chosen = rng.permutation(shapes)[: max(FEWEST_SHAPES, round(PART * shapes))]
    out = np.isin(groups, chosen)
    places = np.flatnonzero(out)
    if len(places) > MOST_POINTS:
        places = np.sort(rng.choice(places, MOST_POINTS, replace=False))
    return points.take(~out), points.take(places)


def save(path: Path, tables: Sequence[Points]) -> None:
    """One Parquet file; what an operator does not have is empty in its rows."""
    frames = []
    for points in tables:
        frame = pd.DataFrame(points.columns)
        for name in ("operator", "gpu", "variant"):
            frame[name] = getattr(points, name)
        frame["seconds"] = points.seconds
        frames.append(frame)
    together = pd.concat(frames, ignore_index=True)
    numbers = [name for name in together.columns if name not in _OWN]
    together[numbers] = together[numbers].astype(np.float32)
    together.to_parquet(path, index=False, compression="zstd")


def load(path: Path = SHIPPED) -> list[Points]:
    """What `save` wrote. Raises DataError for another file."""
    try:
        return _points(pd.read_parquet(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"is no sample of operators ({error!s:.80})", path=str(path)) from None


def _points(frame: pd.DataFrame) -> list[Points]:
    groups = list(frame.groupby(["operator", "gpu", "variant"]))
    found = []
    for (operator, gpu, variant), part in groups:
        names = OPERATORS[str(operator)].columns
        found.append(
            Points(
                operator=str(operator),
                gpu=str(gpu),
                variant=str(variant),
                columns={name: np.asarray(part[name], dtype=np.float64) for name in names},
                seconds=np.asarray(part["seconds"], dtype=np.float64),
            )
        )
    return found
