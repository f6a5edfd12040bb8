"""Pictures of traces: length distributions and arrivals. Computes no statistics of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batchgen.errors import UserError
from batchgen.paths import beside, put
from batchgen.trace.table import Trace
from batchgen.trace.write import refuse_existing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARRIVAL_BINS = 120
PS_PER_S = 1e12
# Colour-blind safe (Okabe and Ito), in the order in which traces are given.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKED_QUANTILES = (0.5, 0.99)


def plot(traces: list[Trace], path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write one picture of up to seven traces; the ending of `path` (.png, .pdf, .svg) decides.

    Left and middle: share of the rows with at most so many prompt and output tokens (log axis,
    dots at the median and the 99th percentile). Right: arrivals per second over time (of several
    traces: relative to each one's mean rate and span), or the share of output tokens held by the
    longest rows if no trace has arrival times.
    """
    if not 1 <= len(traces) <= len(COLOURS):
        raise UserError(f"{len(traces)} traces for one picture", remedy=f"give 1 to {len(COLOURS)}")
    target = Path(path)
    check_picture(target, force=force)
    # The object interface with no pyplot: nothing global is changed and no display is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    timed = [trace for trace in traces if len(trace) and trace.arrival_ps.max() > 0]
    for trace, colour in zip(traces, COLOURS, strict=False):
        _cumulative(left, trace.prompt_tokens, trace.name, colour)
        _cumulative(middle, trace.output_tokens, trace.name, colour)
        if not timed:
            _concentration(right, trace.output_tokens, colour)
        elif trace.arrival_ps.max() > 0:
            _arrivals(right, trace.arrival_ps, colour, relative=len(timed) > 1)
    for axes, title in ((left, "prompt"), (middle, "output")):
        axes.set(xscale="log", xlabel=f"{title} tokens", ylabel="share of rows", ylim=(0, 1.01))
        axes.set_title(f"{title.capitalize()} lengths")
    if timed:
        right.set(ylim=(0, None), title="Arrivals")
        if len(timed) > 1:
            right.set(xlabel="time (share of the span)", ylabel="arrivals (mean rate = 1)")
        else:
            right.set(xlabel="time (s)", ylabel="arrivals per second")
    else:
        right.set(
            xlabel="longest rows (share of all)",
            ylabel="share of output tokens",
            xlim=(0, 1),
            ylim=(0, 1.01),
            title="Who holds the output tokens",
        )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, target)


def check_picture(target: Path, *, force: bool) -> None:
    """Raises UserError for a picture that could not be written."""
    if target.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"{target}: unknown kind of picture", remedy="use .png, .pdf or .svg")
    refuse_existing(target, force=force)


def save_figure(figure: Any, target: Path) -> None:
    """The picture appears complete or not at all. Raises UserError if it cannot be written."""
    # No creation date in the file: the same traces give the same picture.
    metadata = {".png": {"Software": ""}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    try:
        with beside(target) as part:
            figure.savefig(part, format=target.suffix[1:], metadata=metadata[target.suffix])
            put(part, target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror})", remedy="give a writable place"
        ) from None


def _cumulative(axes: Axes, tokens: NDArray[np.int32], label: str, colour: str) -> None:
    values, counts = np.unique(tokens, return_counts=True)
    share = np.cumsum(counts) / tokens.size
    # A step at the left end so that a constant length is visible too.
    axes.step(np.r_[values[0], values], np.r_[0.0, share], where="post", color=colour, label=label)
    marks = np.quantile(tokens, MARKED_QUANTILES)
    axes.plot(marks, MARKED_QUANTILES, "o", color=colour, markersize=4)


def _arrivals(axes: Axes, arrival_ps: NDArray[np.int64], colour: str, *, relative: bool) -> None:
    # Spans and rates of public traces differ by orders of magnitude: on one absolute scale only
    # the longest and the densest could be seen.
    when = arrival_ps / (arrival_ps.max() if relative else PS_PER_S)
    counts, edges = np.histogram(when, bins=ARRIVAL_BINS)
    rate = counts / np.diff(edges)
    axes.stairs(rate / when.size if relative else rate, edges, color=colour)


def _concentration(axes: Axes, tokens: NDArray[np.int32], colour: str) -> None:
    ordered = np.sort(tokens)[::-1].astype(np.float64)
    share = np.r_[0.0, np.cumsum(ordered) / ordered.sum()]
    axes.plot(np.linspace(0, 1, share.size), share, color=colour)
