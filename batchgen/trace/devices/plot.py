"""A picture of a device trace: the state of every GPU over time, and what capacity is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.errors import UserError
from batchgen.trace.devices.compose import compose
from batchgen.trace.devices.events import NORMAL, DeviceTrace
from batchgen.trace.devices.stats import HOUR_PS, Stay, stays
from batchgen.trace.plot import check_picture, save_figure

LOST, NOTICED, FAST = "#404040", "#E69F00", "#56B4E9"
SLOW = ((1.1, "#FDD0A2"), (1.5, "#FD8D3C"), (2.0, "#E6550D"), (float("inf"), "#A63603"))
"""Colours of slow GPUs by the least factor that is too large for them."""
MOST_GPUS = 16_384
BINS = 600


def plot(trace: DeviceTrace, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write the picture; the ending of `path` (.png, .pdf, .svg) decides. Raises UserError."""
    target = Path(path)
    check_picture(target, force=force)
    num_gpus, per_node = trace.sizes()
    if num_gpus > MOST_GPUS:
        raise UserError(
            f"{num_gpus} GPUs in one picture", remedy=f"at most {MOST_GPUS}; keep some with --gpus"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    end_ps = max(trace.end_ps, 1)
    found = list(stays(compose(trace.troubles, num_gpus, per_node), num_gpus, end_ps))
    figure = Figure(figsize=(10, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for colour, label, picked in _layers(found):
        rows: dict[int, list[tuple[float, float]]] = {}
        for stay in picked:
            span = (stay.begin_ps / HOUR_PS, (stay.end_ps - stay.begin_ps) / HOUR_PS)
            rows.setdefault(stay.gpu, []).append(span)
        for gpu, spans in rows.items():
            top.broken_barh(spans, (gpu - 0.5, 1), facecolors=colour, linewidth=0)
        if rows:
            top.bar(0, 0, color=colour, label=label)
    top.set(ylim=(num_gpus - 0.5, -0.5), ylabel="GPU", title=trace.name)
    bottom.stairs(*_capacity(found, num_gpus, end_ps), color="#0072B2", baseline=None)
    bottom.set(
        xlabel="time (h)", ylabel="capacity left", ylim=(0, 1.05), xlim=(0, end_ps / HOUR_PS)
    )
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    bottom.grid(alpha=0.3)
    if top.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=7, frameon=False)
    save_figure(figure, target)


def _layers(found: list[Stay]) -> list[tuple[str, str, list[Stay]]]:
    """(colour, label, stays) of each state that is drawn."""
    layers = [
        (LOST, "lost", [one for one in found if one.factor == 0]),
        (NOTICED, "noticed", [one for one in found if one.noticed and one.factor]),
        (FAST, "fast", [one for one in found if 0 < one.factor < NORMAL and not one.noticed]),
    ]
    low = 1.0
    for high, colour in SLOW:
        picked = [
            one for one in found if low * NORMAL < one.factor <= high * NORMAL and not one.noticed
        ]
        label = f"slow to {high:g}" if high < float("inf") else f"slow above {low:g}"
        layers.append((colour, label, picked))
        low = high
    return layers


def _capacity(found: list[Stay], num_gpus: int, end_ps: int) -> tuple[Any, Any]:
    """Mean capacity per bin of time, and the edges of the bins in hours."""
    edges = np.linspace(0, end_ps, BINS + 1)
    width = edges[1]
    missing = np.zeros(BINS + 1)
    for stay in found:
        share = 1.0 if stay.factor == 0 else 1 - NORMAL / stay.factor
        if share:
            inside = np.clip(edges, stay.begin_ps, stay.end_ps)
            missing[:-1] += share * np.diff(inside) / width
    return 1 - missing[:-1] / num_gpus, edges / HOUR_PS
