"""Carries a sweep out: every run of it that is not in the journal, on so many processes. The
simulator and the search of layouts are passed in; tables and pictures are made elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import batchgen
from batchgen.errors import UserError
from batchgen.oneline import named, one_line
from batchgen.sweep.journal import Journal
from batchgen.sweep.pool import Died, Stop, run_all
from batchgen.sweep.spec import BEST, Run, Sweep
from batchgen.sweep.troubles import device_file

if TYPE_CHECKING:
    from batchgen.simjob import Simulate
    from batchgen.trace.table import Trace

Result = dict[str, Any]
"""{"summary": metrics of a run} or {"error": one line}."""


class Executor:
    """The runs of a sweep, with the rows of the trace read once, before any process is forked."""

    def __init__(
        self, sweep: Sweep, trace: Trace, folder: Path, simulate: Simulate, search: Simulate
    ) -> None:
        self.sweep, self.trace, self.folder = sweep, trace, folder
        self.simulate, self.search = simulate, search
        self.runs = list(sweep.runs())
        if sweep.rows is not None and sweep.rows > len(trace):
            raise UserError(
                f"{sweep.path}: field 'rows': {sweep.rows} of a trace of {len(trace)} rows",
                remedy="give fewer, or leave it out for all rows",
            )
        self._trace_sha256 = _digest(Path(sweep.fixed["trace"]))
        self._files: dict[str, str] = {}
        self._drawn: tuple[int, Trace] | None = None

    def key(self, run: Run) -> str:
        """A name of everything that a run's result depends on but this program's own text."""
        sweep = self.sweep
        files = [run.policy] if run.policy.endswith((".yaml", ".yml")) else []
        faults = device_file(run, self.folder / "devices")
        files += [faults] if faults is not None else []
        files += [sweep.fixed[key] for key in ("profile", "cluster") if key in sweep.fixed]
        fixed = {key: value for key, value in sweep.fixed.items() if key != "trace"}
        parts = {
            "version": batchgen.__version__,
            "trace": self._trace_sha256,
            "files": [self._file(path) for path in files],
            "fixed": fixed,
            "rows": sweep.rows,
            "policy": run.policy,
            "layout": run.layout,
            "gpus": run.gpus,
            "options": run.options.pairs,
            "seed": run.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def _file(self, path: str) -> str:
        if path not in self._files:
            place = Path(path)
            inside = sorted(place.rglob("*")) if place.is_dir() else [place]
            self._files[path] = ",".join(_digest(one) for one in inside if one.is_file()) or path
        return self._files[path]

    def rows_of(self, seed: int) -> Trace:
        """The rows that a seed draws, in the order drawn: a closed batch has no other."""
        if self.sweep.rows is None:
            return self.trace
        if self._drawn is None or self._drawn[0] != seed:
            order = np.random.default_rng(seed).permutation(len(self.trace))[: self.sweep.rows]
            self._drawn = seed, self.trace.take(order.astype(np.int64))
        return self._drawn[1]

    def one(self, number: int) -> Result:
        """A run by its number; whatever goes wrong is a result too."""
        from batchgen.report.metrics import summary

        run = self.runs[number]
        try:
            job = run.job(self.sweep, device_file(run, self.folder / "devices"))
            simulate = self.search if run.layout == BEST else self.simulate
            record = simulate(job, trace=self.rows_of(run.seed))
            return {"summary": plain(summary(record))}
        except UserError as error:
            return {"error": one_line(error, 500)}
        except Exception as error:
            return {"error": f"internal error: {named(error, 300)}"}
        except SystemExit as error:
            return {"error": f"code of a part or a body left by {named(error)}"}

    def carry_out(
        self, journal: Journal, num_workers: int, stop: Stop, tell: Callable[[int, int], None]
    ) -> list[Result | None]:
        """The results of all runs in their order; None: not done, since a signal came. tell: called
        with runs done and runs in all."""
        keys = [self.key(run) for run in self.runs]
        missing = [n for n, key in enumerate(keys) if key not in journal.results]
        died: dict[int, Result] = {}
        done = len(keys) - len(missing)
        tell(done, len(keys))
        for number, result in run_all(self.one, missing, num_workers, stop):
            if isinstance(result, Died):  # not kept: with more memory it may go well
                died[number] = {"error": f"not finished, {result}"}
            else:
                journal.add(keys[number], result)
            done += 1
            tell(done, len(keys))
        return [journal.results.get(key, died.get(number)) for number, key in enumerate(keys)]


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and texts of a summary: what a table has a column for. Not the time that the run
    took, which is another one each time."""
    return {
        key: value
        for key, value in values.items()
        if value is None or isinstance(value, bool | int | float | str)
        if key != "wall_s"
    }


def describe(run: Run) -> dict[str, Any]:
    """The axes of a run, as columns."""
    return {
        "devices": run.devices.name,
        "gpus": run.gpus,
        "layout_asked": run.layout,
        "policy": Path(run.policy).stem if run.policy.endswith((".yaml", ".yml")) else run.policy,
        "options": run.options.name,
        "seed": run.seed,
    }


def as_rows(runs: Sequence[Run], results: Sequence[Result | None]) -> list[dict[str, Any]]:
    """One row per run that is done: axes, error ("" if there is none), metrics."""
    rows = []
    for run, result in zip(runs, results, strict=True):
        if result is not None:
            metrics = {
                key: value for key, value in result.get("summary", {}).items() if key != "policy"
            }
            rows.append({**describe(run), "error": result.get("error", ""), **metrics})
    return rows


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
