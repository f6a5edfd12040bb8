"""Figures of one run and of several: PNG files in a folder. Computes nothing that is not a metric.

Every figure says model, GPUs and layout in its title and names its units on the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.report import metrics, series, style
from batchgen.report.record import RunRecord

NUM_BINS = 400
MAX_MARKS = 400
MOST_CHANGED = 48
"""Characters of what `--set` changed that a title has room for."""


def plot_run(record: RunRecord, folder: Path) -> list[Path]:
    """Write the figures of one run into `folder`, which exists; returns their paths."""
    if metrics.bct_s(record) == 0:
        return []  # nothing ran; there is no time axis
    with style.figures() as plt:
        return [
            _utilisation(plt, record, folder / "utilisation.png"),
            _active(plt, record, folder / "active.png"),
            _completion(plt, [record], folder / "completion.png"),
            _time_split(plt, [record], folder / "time_split.png"),
        ]


def plot_comparison(records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write the figures that overlay several runs into `folder`, which exists."""
    records = [r for r in records if metrics.bct_s(r) > 0]
    if not records:
        return []
    with style.figures() as plt:
        return [
            _completion(plt, records, folder / "completion.png"),
            _time_split(plt, records, folder / "time_split.png"),
            _overlay(plt, records, folder / "over_time.png"),
            _heat_maps(plt, records, folder / "utilisation.png"),
        ]


def _setting(*records: RunRecord) -> str:
    record = records[0]
    layout = record.layout if len({one.layout for one in records}) == 1 else "of each its own"
    changed = metrics.overrides(record)
    if len(changed) > MOST_CHANGED:
        changed = f"{changed[: MOST_CHANGED - 4]} ..."
    return (
        f"{record.model} on {record.num_gpus} x {record.gpu}, layout {layout}"
        + f", {changed}" * bool(changed)
    )


def _device(record: RunRecord) -> str:
    return "CPU" if record.gpu == "cpu" else "GPU"


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """Names of the runs, with their layouts where these differ, and with rows that failed."""
    found = metrics.names([r.policy for r in records], [metrics.overrides(r) for r in records])
    if len({r.layout for r in records}) > 1:
        found = [f"{name}, {r.layout}" for name, r in zip(found, records, strict=True)]
    failed = [sum(metrics.failed_by_code(r).values()) for r in records]
    return [
        f"{name} ({lost:,} rows failed)" if lost else name
        for name, lost in zip(found, failed, strict=True)
    ]


def _looks(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    return style.looks([r.policy for r in records])


def _utilisation(plt: Any, record: RunRecord, path: Path) -> Path:
    """Two heat maps, GPU against time: share of time in passes, and rows in the running batch."""
    busy = series.busy_series(record, NUM_BINS)
    running = series.running_series(record, NUM_BINS)
    running /= np.array([max(int(e["num_gpus"]), 1) for e in record.engines])[:, None]
    figure, axes = plt.subplots(2, 1, figsize=(9.5, 7.2), sharex=True)
    figure.suptitle(f"{record.policy}: {_setting(record)}", fontsize=11, x=0.01, ha="left")
    _heat(figure, axes[0], record, busy, "share of time in passes", "magma", 1.0)
    fraction = metrics.busy_fraction(record) or 0.0
    axes[0].set_title(f"{_device(record)} utilisation: busy {100 * fraction:.1f} % of the time")
    _heat(
        figure,
        axes[1],
        record,
        running,
        f"running sequences per {_device(record)}",
        "viridis",
        None,
    )
    axes[1].set_title(f"Batch: {metrics.mean_running(record):,.0f} sequences running on average")
    divisor, unit = style.time_unit(metrics.bct_s(record))
    axes[1].set_xlabel(f"time since the first arrival ({unit})")
    for axis in axes:
        _draw_faults(axis, record, divisor)
    _fault_legend(figure, axes)
    return style.save(figure, path)


def _heat(
    figure: Any,
    axis: Any,
    record: RunRecord,
    values: series.Floats,
    label: str,
    colours: str,
    top: float | None,
) -> None:
    matrix, num_gpus = series.gpu_rows(record, values)
    bct = metrics.bct_s(record)
    divisor, _ = style.time_unit(bct)
    image = axis.imshow(
        matrix,
        aspect="auto",
        cmap=colours,
        vmin=0.0,
        vmax=top if top is not None else max(float(matrix.max()), 1e-9),
        extent=(0.0, bct / divisor, num_gpus, 0.0),
    )
    axis.grid(visible=False)
    axis.set_ylabel(_device(record))
    if num_gpus <= 16:
        axis.set_yticks(np.arange(num_gpus) + 0.5, [str(i) for i in range(num_gpus)])
    figure.colorbar(image, ax=axis, label=label, pad=0.01, fraction=0.04)


def _draw_faults(axis: Any, record: RunRecord, divisor: float) -> None:
    """Fault marks at their engine's rows: lost, slow, back and notice, each with its own shape."""
    start, _ = metrics.window_ps(record)
    gpus = np.array([int(e["num_gpus"]) for e in record.engines])
    base = np.concatenate([[0], np.cumsum(gpus)])
    place = {int(e["engine"]): base[i] + gpus[i] / 2 for i, e in enumerate(record.engines)}
    looks = {
        "lost": ("X", style.VERMILION),
        "slow": ("v", style.SKY),
        "back": ("^", style.GREEN),
        "notice": ("D", style.ORANGE),
        "fault": ("s", style.GREY),
    }
    points: dict[str, list[tuple[float, float]]] = {}
    for mark in [m for m in record.marks if m["kind"] == "fault"][:MAX_MARKS]:
        word = str(mark["text"]).split(" ", 1)[0].rstrip(":,")
        at = place.get(int(mark["engine"]), base[-1] / 2)
        points.setdefault(word if word in looks else "fault", []).append(
            ((mark["t_ps"] - start) / 1e12 / divisor, at)
        )
    for word, look in looks.items():
        if word in points:
            x, y = zip(*points[word], strict=True)
            axis.scatter(
                x, y, s=62, marker=look[0], color=look[1], ec="white", lw=0.9, label=word, zorder=5
            )


def _fault_legend(figure: Any, axes: Any) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        figure.legend(
            found.values(), found.keys(), loc="upper right", ncols=len(found), fontsize=8.5
        )


def _active(plt: Any, record: RunRecord, path: Path) -> Path:
    """Rows in passes, and those that wait for one in whatever state, over time, stacked."""
    edges = series.bin_edges_s(record, NUM_BINS)
    running = series.running_series(record, NUM_BINS).sum(axis=0)
    queue = series.waiting(record, NUM_BINS)
    divisor, unit = style.time_unit(edges[-1])
    figure, axis = plt.subplots(figsize=(9.5, 4.0))
    x = edges / divisor
    axis.stairs(running, x, fill=True, color=style.BLUE, label="in passes")
    axis.stairs(
        running + queue,
        x,
        baseline=running,
        fill=True,
        color=style.LIGHT_GREY,
        label="not: waiting, paused, suspended",
    )
    axis.set(xlim=(0, x[-1]), ylabel="sequences", xlabel=f"time since the first arrival ({unit})")
    axis.set_ylim(0, max(float((running + queue).max()), 1.0) * 1.05)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_title(f"Active sequences, {record.policy}: {_setting(record)}")
    axis.legend(loc="upper right")
    return style.save(figure, path)


def _completion(plt: Any, records: Sequence[RunRecord], path: Path) -> Path:
    """Share of rows ended over time; the dotted line is where the last 10 % begin."""
    longest = max(metrics.bct_s(r) for r in records)
    divisor, unit = style.time_unit(longest)
    figure, axis = plt.subplots(figsize=(8.5, 4.4))
    looks = _looks(records)
    for record, label, (colour, line) in zip(records, _labels(records), looks, strict=True):
        t, share = series.completion(record)
        x = np.concatenate([[0.0], t]) / divisor
        y = 100 * np.concatenate([[0.0], share])
        bct, tail = (
            style.number(found / divisor)
            for found in (metrics.bct_s(record), metrics.tail10_s(record))
        )
        text = f"{label}: {bct} {unit}, tail {tail} {unit}"
        axis.step(x, y, where="post", color=colour, ls=line, label=text)
        axis.plot(x[-1], y[-1], "o", ms=5, color=colour)
    axis.axhline(90, color=style.GREY, lw=0.9, ls=":")
    axis.set(xlim=(0, longest / divisor * 1.03), ylim=(0, 104))
    axis.set(xlabel=f"time since the first arrival ({unit})", ylabel="rows ended (%)")
    axis.set_title(f"Completion: {_setting(*records)}")
    axis.legend(loc="lower right")
    return style.save(figure, path)


def _time_split(plt: Any, records: Sequence[RunRecord], path: Path) -> Path:
    """What the GPUs did during the run: stacked bars that add up to BCT."""
    divisor, unit = style.time_unit(max(metrics.bct_s(r) for r in records))
    figure, axis = plt.subplots(figsize=(8.5, 1.7 + 0.55 * len(records)))
    longest = max(metrics.bct_s(r) for r in records) / divisor
    labels = _labels(records)
    y = np.arange(len(records))
    left = np.zeros(len(records))
    splits = [metrics.time_split_s(r) for r in records]
    for kind in ("decode", "mixed", "prefill", "idle"):
        width = np.array([split[kind] for split in splits]) / divisor
        axis.barh(
            y,
            width,
            left=left,
            height=0.62,
            color=style.KIND_COLOURS[kind],
            hatch=style.KIND_HATCHES[kind],
            edgecolor="white",
            label=kind,
        )
        left += width
    for i, record in enumerate(records):
        batch = metrics.mean_decode_batch(record)
        text = f" {style.number(left[i])} {unit}"
        if batch is not None:
            text += f"\n {style.number(batch)} rows per decoding pass"
        axis.text(left[i], y[i], text, va="center", fontsize=8.5)
    axis.set_yticks(y, labels)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set(xlim=(0, longest * 1.3), xlabel=f"time, mean over {_device(records[0])}s ({unit})")
    figure.suptitle(
        f"Where the time goes: {_setting(*records)}",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return style.save(figure, path)


def _overlay(plt: Any, records: Sequence[RunRecord], path: Path) -> Path:
    """Three quantities of the whole cluster over time, one line per policy."""
    longest = max(metrics.bct_s(r) for r in records)
    divisor, unit = style.time_unit(longest)
    figure, axes = plt.subplots(3, 1, figsize=(9.0, 7.6), sharex=True)
    looks = _looks(records)
    for record, label, (colour, line) in zip(records, _labels(records), looks, strict=True):
        edges = series.bin_edges_s(record, NUM_BINS // 2) / divisor
        look = {
            "color": colour,
            "ls": line,
            "label": label,
            "baseline": None,
            "lw": 1.6,
        }
        gpus = np.array([int(e["num_gpus"]) for e in record.engines], dtype=np.float64)
        busy = series.busy_series(record, NUM_BINS // 2) * gpus[:, None]
        axes[0].stairs(100 * busy.sum(axis=0) / max(record.num_gpus, 1), edges, **look)
        running = series.running_series(record, NUM_BINS // 2)
        axes[1].stairs(running.sum(axis=0), edges, **look)
        pages = series.kv_series(record, NUM_BINS // 2)
        size = sum(int(e["hbm_pages_total"]) for e in record.engines)
        axes[2].stairs(100 * pages.sum(axis=0) / max(size, 1), edges, **look)
    axes[0].set(ylabel=f"{_device(records[0])}s in passes (%)", ylim=(0, 104))
    axes[1].set(ylabel="running sequences")
    axes[1].set_ylim(bottom=0)
    axes[1].yaxis.set_major_formatter("{x:,.0f}")
    axes[2].set(ylabel="KV pages leased (%)", ylim=(0, 104))
    axes[2].set_xlabel(f"time since the first arrival ({unit})")
    axes[2].set_xlim(0, longest / divisor)
    axes[0].set_title(f"Over time: {_setting(*records)}")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(records)
    )
    return style.save(figure, path)


def _heat_maps(plt: Any, records: Sequence[RunRecord], path: Path) -> Path:
    """Utilisation heat maps of all runs on one time axis."""
    longest = max(metrics.bct_s(r) for r in records)
    divisor, unit = style.time_unit(longest)
    figure, axes = plt.subplots(
        len(records), 1, figsize=(9.5, 1.0 + 2.0 * len(records)), sharex=True, squeeze=False
    )
    image = None
    for axis, record, label in zip(axes[:, 0], records, _labels(records), strict=True):
        matrix, num_gpus = series.gpu_rows(record, series.busy_series(record, NUM_BINS))
        bct = metrics.bct_s(record) / divisor
        extent = (0.0, bct, num_gpus, 0.0)
        image = axis.imshow(matrix, aspect="auto", cmap="magma", vmin=0.0, vmax=1.0, extent=extent)
        axis.grid(visible=False)
        axis.set(xlim=(0, longest / divisor), ylim=(num_gpus, 0), ylabel=_device(record))
        busy = metrics.busy_fraction(record) or 0.0
        axis.set_title(f"{label}: busy {100 * busy:.1f} %, {style.number(bct)} {unit}", fontsize=10)
        axis.axvline(bct, color=style.GREY, lw=1.0)
        _draw_faults(axis, record, divisor)
    axes[-1, 0].set_xlabel(f"time since the first arrival ({unit})")
    figure.suptitle(
        f"{_device(records[0])} utilisation: {_setting(*records)}",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    _fault_legend(figure, axes[:, 0])
    figure.colorbar(image, ax=axes[:, 0], label="share of time in passes", pad=0.01, fraction=0.03)
    return style.save(figure, path)
