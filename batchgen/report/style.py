"""The one look of every figure: sizes, fonts and a palette safe for colour-blind readers.

Draws nothing. Categorical colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchgen.paths import beside, put

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT_GREY = "#8A8A8A", "#DDDDDD"

CYCLE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, YELLOW)
LINE_STYLES = ("-", "--", "-.", ":")
POLICIES = ("static", "orca", "vllm", "batchgen")
"""They look the same in every figure; others take what is left."""
KIND_COLOURS = {"decode": BLUE, "mixed": SKY, "prefill": ORANGE, "idle": LIGHT_GREY}
# A second cue beside colour, for print and for readers who see no hue at all.
KIND_HATCHES = {"decode": "", "mixed": "///", "prefill": "...", "idle": ""}

RC: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


def looks(policies: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, line) of each run, by its policy; no two are the same up to the length of the
    cycle."""
    left = [i for i in range(len(CYCLE)) if i >= len(POLICIES)]
    left += [i for i in range(len(POLICIES)) if POLICIES[i] not in policies]
    used: dict[str, int] = {}
    found = []
    for number, name in enumerate(policies):
        if name in POLICIES and name not in used:
            index = used[name] = POLICIES.index(name)
        else:
            index = left.pop(0) if left else number
        found.append((CYCLE[index % len(CYCLE)], LINE_STYLES[index % len(LINE_STYLES)]))
    return found


@contextmanager
def figures() -> Iterator[Any]:
    """matplotlib.pyplot on the Agg canvas in the shared style; closes what was opened inside."""
    # It warns where no folder of its own can be made; nothing of ours needs one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    with matplotlib.rc_context(RC):
        try:
            yield plt
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)


def save(figure: Any, path: Path) -> Path:
    """Write `figure` as PNG without a date, so that the same run gives the same bytes."""
    with beside(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
        put(temporary, path)
    return path


def number(value: float) -> str:
    """Three digits that count, and no exponent: 0.0123, 1.23, 2,390."""
    return f"{float(f'{value:.3g}'):,.10g}"


def time_unit(seconds: float) -> tuple[float, str]:
    """(divisor, unit) that makes an axis of this length readable."""
    for divisor, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if seconds >= 3 * divisor:
            return divisor, unit
    return 1e-3, "ms"
