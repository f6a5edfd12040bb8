"""Run directories: write one atomically, read one back. The same layout from both backends.

    DIR/run.json  summary.json  rows.parquet  steps.parquet  [decisions.jsonl.gz]  plots/*.png

A directory appears whole (a temporary sibling, then a rename) or not at all. A non-empty directory
is never written over unless `force` is given and it is itself a run directory.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.errors import DataError, UserError
from batchgen.paths import beside, check_new_folder, has_file, put
from batchgen.report.metrics import summary
from batchgen.report.record import FLOAT_COLUMNS, ROW_COLUMNS, STEP_COLUMNS, RunRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = 1
RUN_FIELDS = (
    "policy",
    "backend",
    "model",
    "gpu",
    "layout",
    "num_gpus",
    "config",
    "marks",
    "engines",
    "wall_s",
    "gpu_price_per_hour",
)


def check_target(path: Path, *, force: bool = False) -> None:
    """Raise UserError unless a run directory may be written at `path`; call before a long run."""
    check_new_folder(path)
    if not path.exists():
        return
    if not any(path.iterdir()):
        return
    if not force:
        raise UserError(
            f"{path} exists and is not empty", remedy="give another --out, or --force to replace it"
        )
    if not (path / "run.json").is_file():
        raise UserError(
            f"{path} is not a run directory (no run.json), so --force does not replace it",
            remedy="give another --out",
        )


def write_run(
    record: RunRecord,
    path: Path,
    *,
    force: bool = False,
    plots: bool = True,
    more: Mapping[str, object] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write the run directory of `record` and return its summary. Consumes `record.decisions`;
    `more`: JSON files that go along, by name; `files`: others, as they are.

    Raises UserError if `path` is taken (see `check_target`) or cannot be written.
    """
    check_target(path, force=force)
    path = Path(os.path.realpath(path))  # through links: a rename would hit the link itself
    result = summary(record)
    with beside(path) as temporary:
        try:
            temporary.mkdir(parents=True)
            _fill(record, result, temporary, plots)
            for name, value in (more or {}).items():
                write_json(temporary / name, value)
            for name, content in (files or {}).items():
                (temporary / name).write_bytes(content)
            _swap(temporary, path)
        except OSError as error:  # a full disk, a limit of size: none is a bug of ours
            why = error.strerror or error
            raise UserError(f"cannot write {path}: {why}", remedy="check it") from None
    return result


def _fill(record: RunRecord, result: dict[str, Any], folder: Path, plots: bool) -> None:
    run = {"schema": SCHEMA} | {name: getattr(record, name) for name in RUN_FIELDS}
    write_json(folder / "run.json", run)
    write_json(folder / "summary.json", {"schema": SCHEMA} | result)
    _write_table(folder / "rows.parquet", record.rows, record.row_reasons)
    _write_table(folder / "steps.parquet", record.steps, None)
    if record.decisions is not None:
        with (folder / "decisions.jsonl.gz").open("wb") as out:
            out.writelines(record.decisions)
    (folder / "plots").mkdir()
    if plots:
        from batchgen.report.plots import plot_run

        plot_run(record, folder / "plots")


def _swap(temporary: Path, path: Path) -> None:
    """Put `temporary` at `path`; a replaced directory is set aside first, so that none is lost."""
    if not path.exists() or not any(path.iterdir()):
        temporary.rename(path)  # POSIX: renaming onto an empty directory replaces it
        return
    with beside(path) as aside:
        try:
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            path.rename(aside)
            temporary.rename(path)
        except BaseException:  # a signal between the two
            if not path.exists():
                aside.rename(path)
            raise


def write_json(path: Path, value: object) -> None:
    """Write strict JSON (no NaN), two-space indent, through a temporary sibling and a rename."""
    text = json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n"
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        put(temporary, path)


def _plain(value: object) -> object:
    """NumPy scalars as Python numbers; anything else is a bug of the caller."""
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    raise TypeError(f"{type(value).__name__} in a run record is not JSON: {value!r}")


def _write_table(path: Path, table: dict[str, NDArray[Any]], reasons: list[str] | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {name: pa.array(values) for name, values in table.items()}
    if reasons is not None:
        columns["reason"] = pa.array(reasons, pa.string()).dictionary_encode()
    with path.open("wb") as file:  # pyarrow itself takes no path that is not UTF-8
        pq.write_table(pa.table(columns), file, compression="zstd")


def load_run(path: Path) -> RunRecord:
    """Read a run directory back; `decisions` is None. Raises UserError or DataError."""
    path = Path(path)
    if not (path / "run.json").is_file():
        raise UserError(
            f"{path} is not a run directory (no run.json)",
            remedy="give a folder written by 'batchgen sim --out' or 'batchgen exec --out'",
        )
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=str(path / "run.json")) from error
    if not isinstance(run, dict):
        raise DataError("not a JSON object", path=str(path / "run.json"))
    if run.get("schema") != SCHEMA:
        raise DataError(
            f"schema {run.get('schema')}, this version reads {SCHEMA}",
            path=str(path / "run.json"),
            field="schema",
        )
    missing = [name for name in RUN_FIELDS if name not in run]
    if missing:
        raise DataError("missing", path=str(path / "run.json"), field=missing[0])
    rows, reasons = _read_table(path / "rows.parquet", ROW_COLUMNS)
    steps, _ = _read_table(path / "steps.parquet", STEP_COLUMNS)
    fields = {name: run[name] for name in RUN_FIELDS}
    return RunRecord(rows=rows, row_reasons=reasons, steps=steps, **fields)


def _read_table(path: Path, expected: tuple[str, ...]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    has_file(path)
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"cannot be read: {str(error).splitlines()[0]}", path=str(path)) from error
    columns: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        if name != "reason":
            kind = np.float64 if name in FLOAT_COLUMNS else np.int64
            columns[name] = table.column(name).to_numpy().astype(kind)
    for name in expected:
        if name not in columns:
            raise DataError("missing column", path=str(path), field=name)
    reasons = table.column("reason").to_pylist() if "reason" in table.column_names else []
    return columns, reasons
