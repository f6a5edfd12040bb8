"""What each term of the model is worth: the same runs with one term left out at a time.

Terms of the tables are left out in copies of the files, so the cost model has no switch for it.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TERMS = (
    ("skew of contexts", (), "skew"),
    ("decodes dearer beside a prompt", (), "beside"),
    ("attention", (), "attention"),
    ("head and sampler", (), "head"),
    ("host work per step", (("cost.step_s", "0"),), None),
    ("host work per step with prompts", (("cost.prefill_step_s", "0"),), None),
    ("prefix cache", (("plan.prefix_cache", "false"),), None),
    ("lag of one pass", (("plan.depth", "1"),), None),
)
"""(name, changed options, tables without it)."""


@dataclass(frozen=True, slots=True)
class Table:
    """One CSV file."""

    header: list[str]
    rows: list[list[str]]


def write_without(term: str, source: Path, target: Path) -> Path:
    """A copy of a folder of operator profiles without a term; returns `target`."""
    table, change = _CHANGES.get(term, ("", None))
    for path in sorted(source.rglob("*")):
        name, copy = path.name, target / path.relative_to(source)
        if not path.is_file():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("meta.yaml"):
            meta: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            if term == "skew":
                meta["skew_fit"] = {"enabled": False}
            copy.write_text(yaml.safe_dump(meta), encoding="utf-8")
        elif change is not None and name.split("__")[-1].startswith(f"{table}.csv"):
            _rewrite(path, copy, change)
        else:
            copy.write_bytes(path.read_bytes())
    return target


def _rewrite(source: Path, target: Path, change: Callable[[Table], None]) -> None:
    raw = source.read_bytes()
    text = (gzip.decompress(raw) if source.suffix == ".gz" else raw).decode()
    rows = list(csv.reader(io.StringIO(text)))
    table = Table(rows[0], rows[1:])
    change(table)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
    data = out.getvalue().encode()
    target.write_bytes(gzip.compress(data, mtime=0) if source.suffix == ".gz" else data)


def _beside(table: Table) -> None:
    """Decodes beside a prompt take what they take alone."""
    where = [table.header.index(name) for name in ("prefill_chunk", "kv_prefill", "n_decode")]
    context, time = table.header.index("kv_decode"), table.header.index("time_us")
    prompts: dict[tuple[str, str], float] = {}
    alone: dict[tuple[str, str], float] = {}
    for row in table.rows:
        chunk, history, rows = (row[i] for i in where)
        if int(rows) == 0:
            prompts[chunk, history] = float(row[time])
        elif int(chunk) == 0:
            alone[rows, row[context]] = float(row[time])
    for row in table.rows:
        chunk, history, rows = (row[i] for i in where)
        if int(chunk) and int(rows) and (rows, row[context]) in alone:
            row[time] = f"{prompts[chunk, history] + alone[rows, row[context]]:.5f}"


def _nothing(table: Table) -> None:
    time = table.header.index("time_us")
    for row in table.rows:
        row[time] = "0"


_CHANGES: dict[str, tuple[str, Callable[[Table], None]]] = {
    "beside": ("attention", _beside),
    "attention": ("attention", _nothing),
    "head": ("per_sequence", _nothing),
}
