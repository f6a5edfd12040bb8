"""What a cell of a notebook shows: pictures as PNG and summaries as data frames. Draws nothing.

The values know Jupyter's display protocol (`_repr_png_`), so no part of Jupyter is needed here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.report.tables import ROWS, cell_value, fastest, labels

if TYPE_CHECKING:
    import pandas as pd

COLOURS = 128
"""Of a picture's palette: enough for a heat map, and a third of the bytes."""
DPI = 100


class Picture:
    """A PNG that a notebook shows where it is the value of a cell."""

    def __init__(self, png: bytes, text: str) -> None:
        self.png, self.text = png, text

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"<{self.text}>"


def picture(source: Any) -> Picture:
    """A figure of matplotlib, or a PNG by its path, small enough to be kept in a notebook.

    The same figure gives the same bytes.
    """
    if isinstance(source, Path):
        return _small(source.read_bytes(), source.stem)
    file = io.BytesIO()
    source.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    axes = source.axes[0].get_title(loc="left") if source.axes else ""
    return _small(file.getvalue(), axes or "figure")


def _small(png: bytes, text: str) -> Picture:
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    file = io.BytesIO()
    flat = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat.save(file, format="png", optimize=True)
    return Picture(file.getvalue(), text)


def table(summaries: Sequence[Mapping[str, Any]], *keys: str) -> pd.DataFrame:
    """Metrics of runs as text, as `batchgen sim` prints them: one column per run.

    keys: of `batchgen.report.tables.ROWS`, in the order wanted. Raises KeyError for another.
    """
    import pandas as pd

    rows = {row[1]: row for row in ROWS if row is not None}
    best = fastest(summaries)
    lines = {}
    for key in keys:
        label, _, form, _ = rows[key]
        found = [cell_value(s, key, None if best is None else summaries[best]) for s in summaries]
        lines[label] = ["-" if value is None else form(value) for value in found]
    return pd.DataFrame.from_dict(lines, orient="index", columns=labels(summaries))
