"""The picture of a sweep: one small panel per kind of trouble, bands over seeds. It reads cells.

Over numbers of GPUs, where there are several: a line and a band per variant. Else a bar per variant
from the fastest seed to the slowest, with a dot at the mean and a ring where 99 % are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchgen.report import style
from batchgen.sweep.table import AXES, Cell

MOST_COLUMNS = 3
MOST_PANELS = 24
MOST_VARIANTS = 40
MOST_LEGEND_COLUMNS = 4
HANDLE_IN, LETTER_IN, LINE_IN = 0.55, 0.08, 0.18
"""Room in a legend, inches: a column beside its words, a letter, a line."""
DEVICES, GPUS = AXES.index("devices"), AXES.index("gpus")


def draw(found: Sequence[Cell], title: str, path: Path) -> Path | None:
    """Writes the picture; None: no run went well."""
    if not any(cell.good for cell in found):
        return None
    kinds = list(dict.fromkeys(str(cell.axes[DEVICES]) for cell in found))[:MOST_PANELS]
    longest = max(most for cell in found if (most := (cell.spread("bct_s") or (0, 0, 0))[2]))
    divisor, unit = style.time_unit(longest)
    over_gpus = len({cell.axes[GPUS] for cell in found}) > 1
    variants = _variants(found)
    columns = min(MOST_COLUMNS, len(kinds))
    lines = -(-len(kinds) // columns)
    height = 2.6 if over_gpus else 0.75 + 0.24 * len(variants)
    with style.figures() as plt:
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(1.6 + 3.2 * columns, 0.9 + height * lines),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
        panels = axes.ravel()
        for axis, kind in zip(panels, kinds, strict=False):
            inside = [cell for cell in found if str(cell.axes[DEVICES]) == kind]
            (_lines if over_gpus else _bars)(axis, inside, variants, divisor)
            axis.set_title(kind, fontsize=10)
        for axis in panels[len(kinds) :]:
            axis.set_visible(False)
        # Not before all is drawn: the axes are shared.
        if over_gpus:
            panels[0].set_ylim(0, longest / divisor * 1.05)
        else:
            panels[0].set_xlim(0, longest / divisor * 1.05)
        for i, axis in enumerate(panels[: len(kinds)]):
            if i + columns >= len(kinds):
                axis.tick_params(labelbottom=True)
                axis.set_xlabel("GPUs" if over_gpus else f"completion time ({unit})")
            if over_gpus and i % columns == 0:
                axis.set_ylabel(f"completion time ({unit})")
        some_failed = any(len(cell.good) < len(cell.runs) for cell in found)
        _legend(figure, panels[0], over_gpus, some_failed)
        return style.save(figure, path)


def _variants(found: Sequence[Cell]) -> dict[tuple[Any, ...], tuple[str, str, str]]:
    """(label, colour, line) of each policy, layout and set of options: a colour per policy, or per
    set of options where there is one policy, or per layout where that is all; a line per rest."""
    keys = list(dict.fromkeys(cell.axes[2:] for cell in found))[:MOST_VARIANTS]
    varying = [i for i in range(3) if len({key[i] for key in keys}) > 1] or [1]
    main = next(i for i in (1, 2, 0) if i in varying)
    values = list(dict.fromkeys(str(key[main]) for key in keys))
    names = values if main == 1 else [str(keys[0][1])] * len(values)
    colours = dict(zip(values, style.looks(names), strict=True))
    others = list(dict.fromkeys(key[:main] + key[main + 1 :] for key in keys))
    variants = {}
    for key in keys:
        colour, line = colours[str(key[main])]
        if len(others) > 1:
            number = others.index(key[:main] + key[main + 1 :])
            line = style.LINE_STYLES[number % len(style.LINE_STYLES)]
        label = ", ".join(str(key[i]) for i in (1, 0, 2) if i in varying)
        variants[key] = (label, colour, line)
    return variants


def _bars(axis: Any, inside: Sequence[Cell], variants: Any, divisor: float) -> None:
    for y, (key, (_, colour, _)) in enumerate(variants.items()):
        cell = next((one for one in inside if one.axes[2:] == key), None)
        bct = None if cell is None else cell.spread("bct_s")
        if cell is None or bct is None:
            axis.plot(0, y, marker="x", color=style.VERMILION, ms=6, clip_on=False)
            continue
        mean, least, most = (value / divisor for value in bct)
        axis.barh(y, most - least, left=least, height=0.62, color=colour, alpha=0.35, lw=0)
        axis.plot(mean, y, "o", ms=5, color=colour)
        done = cell.spread("done99_s")
        if done is not None:
            axis.plot(done[0] / divisor, y, "o", ms=5, mfc="white", mec=colour)
        if len(cell.good) < len(cell.runs):
            axis.plot(most, y, marker="x", color=style.VERMILION, ms=6)
    axis.set_yticks(range(len(variants)), [label for label, _, _ in variants.values()])
    axis.set_ylim(len(variants) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")


def _lines(axis: Any, inside: Sequence[Cell], variants: Any, divisor: float) -> None:
    for key, (label, colour, line) in variants.items():
        points = [
            (cell.axes[GPUS], *(value / divisor for value in bct))
            for cell in inside
            if cell.axes[2:] == key and (bct := cell.spread("bct_s")) is not None
        ]
        if points:
            x, mean, least, most = zip(*sorted(points), strict=True)
            axis.fill_between(x, least, most, color=colour, alpha=0.2, lw=0)
            axis.plot(x, mean, color=colour, ls=line, marker="o", ms=4, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({cell.axes[GPUS] for cell in inside}))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _legend(figure: Any, axis: Any, over_gpus: bool, some_failed: bool) -> None:
    if over_gpus:
        handles, words = axis.get_legend_handles_labels()
    else:
        grey = style.GREY
        handles = [
            axis.fill_between([], [], color=grey, alpha=0.35, lw=0),
            axis.plot([], [], "o", ms=5, color=grey)[0],
            axis.plot([], [], "o", ms=5, mfc="white", mec=grey)[0],
        ]
        words = ["fastest to slowest seed", "mean", "99 % of the rows done"]
        if some_failed:
            handles.append(axis.plot([], [], "x", ms=6, color=style.VERMILION, ls="")[0])
            words.append("a run failed")
    if not words:
        return
    width, height = figure.get_size_inches()
    widest = HANDLE_IN + LETTER_IN * max(len(word) for word in words)
    columns = min(len(words), MOST_LEGEND_COLUMNS, max(1, int(width / widest)))
    lines = -(-len(words) // columns)
    figure.set_size_inches(width, height + LINE_IN * (lines - 1))
    figure.legend(handles, words, loc="outside lower center", ncols=columns, fontsize=8.5)
