"""Draws running and waiting requests over time, measured beside simulated, all runs in one picture.
Computes no metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from batchgen.engines.compare import CATALOG, PROFILES
from batchgen.engines.recorded import Recorded
from batchgen.report import series, style
from batchgen.report.record import RunRecord

BINS_PER_S = 1
LOOKS = {PROFILES: (style.BLUE, "-"), CATALOG: (style.ORANGE, "--")}


def draw(runs: Sequence[tuple[Recorded, Mapping[str, RunRecord]]], path: Path) -> Path:
    """One column per run, running above waiting."""
    with style.figures() as plt:
        figure, axes = plt.subplots(
            2, len(runs), figsize=(5.6 * len(runs), 5.2), squeeze=False, sharex="col"
        )
        for column, (run, records) in enumerate(runs):
            above, below = axes[0][column], axes[1][column]
            above.step(run.curve_s, run.running, where="pre", color=style.BLACK, label="measured")
            below.step(run.curve_s, run.waiting, where="pre", color=style.BLACK, label="measured")
            for costs, record in records.items():
                colour, line = LOOKS[costs]
                span = series.bin_edges_s(record, 1)[1]
                bins = max(1, int(np.ceil(span * BINS_PER_S)))
                edges = series.bin_edges_s(record, bins)
                middle = (edges[1:] + edges[:-1]) / 2
                running = series.running_series(record, bins).sum(axis=0)
                label = f"simulated, {costs}"
                look = {"color": colour, "linestyle": line, "linewidth": 1.4, "label": label}
                above.plot(middle, running, **look)
                below.plot(middle, series.waiting(record, bins), **look)
            settings = run.settings
            above.set_title(
                f"{settings.model} on {settings.gpus} x {settings.gpu}, {settings.layout}"
            )
            above.set_ylabel("running requests")
            below.set_ylabel("waiting requests")
            below.set_xlabel("seconds since the first arrival")
            for one in (above, below):
                one.set_ylim(bottom=0)
                one.set_xlim(left=0)
        axes[0][0].legend(loc="lower center")
        style.save(figure, path)
        plt.close(figure)
    return path
