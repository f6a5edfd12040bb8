"""The table of a sweep: one row per run for Parquet, one line per cell, over its seeds, for people.

The same rows give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.paths import write_whole
from batchgen.report import text
from batchgen.report.tail import CAUSES, column

if TYPE_CHECKING:
    from rich.table import Table

AXES = ("devices", "gpus", "layout_asked", "policy", "options")
"""What a cell is; `seed` varies inside it."""
LABELS = {"layout_asked": "layout"}

TROUBLE = "trouble"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The runs of one cell over its seeds. good: those whose rows all ended well."""

    axes: tuple[Any, ...]
    runs: tuple[Row, ...]

    @property
    def good(self) -> list[Row]:
        return [run for run in self.runs if not run["error"] and not run["failed_rows"]]

    def spread(self, metric: str) -> tuple[float, float, float] | None:
        """(mean, least, most) over the seeds of the good runs; None: there is none."""
        found = [run[metric] for run in self.good if run.get(metric) is not None]
        if not found:
            return None
        return sum(found) / len(found), min(found), max(found)

    @property
    def trouble(self) -> str:
        """What went wrong, in a few words; "" if nothing did."""
        errors = [run["error"] for run in self.runs if run["error"]]
        failed = sum(int(run["failed_rows"]) for run in self.runs if not run["error"])
        told = [f"{failed:,} rows failed"] if failed else []
        told += [f"{len(errors)} of {len(self.runs)} runs: {errors[0]}"] if errors else []
        return "; ".join(told)


def cells(rows: Sequence[Row]) -> list[Cell]:
    """The cells in the order of their first runs."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[axis] for axis in AXES), []).append(row)
    return [Cell(axes=axes, runs=tuple(runs)) for axes, runs in found.items()]


def varying(found: Sequence[Cell]) -> list[int]:
    """Numbers of the axes that have more than one value."""
    return [i for i in range(len(AXES)) if len({cell.axes[i] for cell in found}) > 1]


def slowdown(cell: Cell, found: Sequence[Cell]) -> float | None:
    """Mean time over that of the same cell under the first kind of trouble, by the seeds that both
    have."""
    first = found[0].axes[0]
    base = next((one for one in found if one.axes == (first, *cell.axes[1:])), None)
    if base is None or base is cell:
        return None
    times = {run["seed"]: float(run["bct_s"]) for run in base.good}
    pairs = [(run["bct_s"], times[run["seed"]]) for run in cell.good if run["seed"] in times]
    total = sum(after for _, after in pairs)
    return sum(before for before, _ in pairs) / total if total else None


def main_cause(cell: Cell) -> str:
    """The largest cause of the tail, with its part of it."""
    parts = {cause: cell.spread(column(cause)) for cause in CAUSES}
    means = {cause: part[0] for cause, part in parts.items() if part is not None}
    total = sum(means.values())
    if not total:
        return "-"
    cause = max(means, key=lambda name: means[name])
    return f"{CAUSES[cause]} {100 * means[cause] / total:.0f} %"


def lines(found: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    """Heads and texts of the table."""
    shown = varying(found) or [3]
    several = any(len(cell.runs) > 1 for cell in found)
    heads = [LABELS.get(AXES[i], AXES[i]) for i in shown]
    heads += ["completion time"] + ["over seeds"] * several
    heads += [f"to {found[0].axes[0]}"] * (0 in shown) if found else []
    heads += ["99 % done", "last 10 %", "tail is mostly", "GPU busy", TROUBLE]
    told = []
    for cell in found:
        bct = cell.spread("bct_s")
        line = [str(cell.axes[i]) for i in shown]
        line.append("-" if bct is None else text.duration(bct[0]))
        if several:
            ends = "-" if bct is None else f"{text.duration(bct[1])} to {text.duration(bct[2])}"
            line.append(ends)
        if 0 in shown:
            line.append(text.ratio(slowdown(cell, found)))
        for metric in ("done99_s", "tail10_s"):
            value = cell.spread(metric)
            line.append("-" if value is None else text.duration(value[0]))
        busy = cell.spread("busy_fraction")
        line += [main_cause(cell), text.percent(None if busy is None else busy[0]), cell.trouble]
        told.append(line)
    if not any(line[-1] for line in told):
        heads, told = heads[:-1], [line[:-1] for line in told]
    return heads, told


def rich_table(found: Sequence[Cell], title: str) -> Table:
    """For a terminal; what went wrong is too long for it (`trouble_lines`)."""
    from rich.markup import escape
    from rich.table import Table

    heads, told = lines(found)
    if heads[-1:] == [TROUBLE]:
        heads, told = heads[:-1], [line[:-1] for line in told]
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for i, head in enumerate(heads):
        words = i < len(varying(found) or [3])
        table.add_column(head, justify="left" if words else "right", no_wrap=True)
    before: Any = None
    for cell, line in zip(found, told, strict=True):
        if before is not None and cell.axes[0] != before:
            table.add_section()
        before = cell.axes[0]
        table.add_row(*(escape(one) for one in line))
    return table


def trouble_lines(found: Sequence[Cell]) -> list[str]:
    """One line per cell in which something went wrong."""
    shown = varying(found) or [3]
    return [
        f"{', '.join(str(cell.axes[i]) for i in shown)}: {cell.trouble}"
        for cell in found
        if cell.trouble
    ]


def markdown(found: Sequence[Cell]) -> str:
    """For a page."""
    heads, told = lines(found)
    rows = [heads, ["---"] * len(heads), *told]
    return "".join("| " + " | ".join(c.replace("|", "/") for c in row) + " |\n" for row in rows)


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """One row per run; a column holds whole numbers, numbers or texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    arrays = {name: pa.array(values, _kind(values)) for name, values in columns.items()}
    packed = io.BytesIO()
    pq.write_table(pa.table(arrays), packed, compression="zstd")
    write_whole(path, packed.getvalue())


def _kind(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    known = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in known):
        return pa.string()
    whole = known and all(isinstance(value, int) for value in known)
    return pa.int64() if whole else pa.float64()
