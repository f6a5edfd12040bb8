"""Draws docs/img/machines.svg: the two machines of the runtime and the calls between them.

python docs/draw_machines.py             rewrite the picture
python docs/draw_machines.py FILE.png    draw it elsewhere, to look at it

The names of calls are data here; tests/project/test_docs_machines.py holds them against the code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "img" / "machines.svg"

# What an engine asks of the cluster, as attributes of `engine.up`.
UP = (
    ("nothing waits", ("hunger.hungry",)),
    ("a row ended, or fits nowhere", ("ended", "end_early", "too_large")),
    ("a row waits again", ("queue_grew",)),
    ("at a boundary", ("look", "undo")),
    ("rows with KV leave", ("transfers.look_for_homes",)),
    ("", ("transfers.suspend",)),
    ("they are to end", ("transfers.call_back",)),
    ("rows with KV come", ("transfers.restore", "transfers.move")),
    ("a timed pass", ("pace.report",)),
    ("bodies", ("start_body", "tell_body")),
    ("", ("stage_ended", "sleep")),
)
# What the cluster tells an engine: methods of `EngineMachine`, and functions of runtime/engine that
# take one. None of them decides but `kick`.
DOWN = (
    ("rows that wait", ("offer", "reclaim", "enqueue", "replan")),
    ("rows that ask, rows asked for", ("asked", "give_ready", "take_ready")),
    ("a copy is done", ("took_in", "restored", "suspended")),
    ("the source frees", ("gave_hbm", "gave_host")),
    ("no copy after all", ("ungrant", "keep", "not_suspended")),
    ("a row is to end or sleep", ("order", "cancel_waiting")),
    ("it ended", ("take_order", "withdraw", "forget_kv")),
    ("its body goes on", ("will_extend", "fell_asleep", "goes_on")),
    ("devices, their layout", ("lost", "revive", "change_layout")),
    ("all rows are to leave", ("drain", "send_away")),
    ("it is to be tried", ("look_now", "time_pass")),
    ("after the event", ("forget_hunger", "hurry", "kick")),
)
# What the cluster asks an engine's files, which changes nothing.
ASKED = ("fits_ever", "only_decodes")

INK, SOFT, PAPER = "#1b1b1b", "#5a5a5a", "#ffffff"
CLUSTER, ENGINE, OUTSIDE = "#dcebf7", "#fdeccf", "#ececec"
EDGE = {CLUSTER: "#0072B2", ENGINE: "#B87400", OUTSIDE: "#777777"}

# (name, what it does), as files of runtime/cluster and as state of an engine.
CLUSTER_PARTS = (
    ("input, placement", "arrivals get an engine and a rank"),
    ("hunger", "idle engines are fed by others"),
    ("transfers, homes", "rows with KV move, in five phases"),
    ("members", "lost, noticed, slow engines"),
    ("pace, lag, level", "slowness, inferred and healed"),
    ("tail", "another layout for few rows"),
    ("obey", "what bodies ask for, timers"),
    ("orders", "rows to end or sleep, wherever"),
    ("loads", "work given to every rank"),
)
ENGINE_PARTS = (
    ("ranks", "pages leased, pages that grow"),
    ("lanes", "rows that wait, without pages"),
    ("sets of a rank", "running, prefilling, held, dead"),
    ("host share", "ready rows, streamed pages"),
    ("requests, granted, arrived", "rows with KV that come"),
    ("doubt", "left; last outcome unknown"),
    ("launched step", "q, k, epoch; its leases are taken"),
)


def draw(file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    # Text stays text: a font that a reader lacks is replaced by one that is no wider.
    mpl.rcParams.update({"svg.hashsalt": "machines", "svg.fonttype": "none"})
    figure = plt.figure(figsize=(9.8, 7.19), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 124)
    axes.set_ylim(0, 91)
    axes.axis("off")

    def box(x: float, y: float, w: float, h: float, colour: str, *, white: bool = False) -> None:
        face = PAPER if white else colour
        style = "round,pad=0,rounding_size=0.8"
        edge = EDGE[colour]
        axes.add_patch(FancyBboxPatch((x, y), w, h, style, fc=face, ec=edge, lw=1.0))

    def text(x: float, y: float, words: str, size: float = 8.6, **more: Any) -> None:
        options: dict[str, Any] = {"color": INK, "va": "center", "ha": "left", **more}
        axes.text(x, y, words, fontsize=size, **options)

    def arrow(x: float, y: float, to_x: float, to_y: float, colour: str = INK) -> None:
        shape = {"arrowstyle": "-|>", "mutation_scale": 13, "lw": 1.5, "color": colour}
        axes.add_patch(FancyArrowPatch((x, y), (to_x, to_y), **shape))

    def cells(x: float, top: float, w: float, colour: str, items: tuple[Any, ...]) -> float:
        pitch = 4.75 if len(items) < 9 else 4.4
        for name, what in items:
            box(x, top - 4.4, w, 3.9, colour, white=True)
            text(x + 0.9, top - 1.75, name, 8.4, weight="bold")
            text(x + 0.9, top - 3.4, what, 7.5, color=SOFT)
            top -= pitch
        return top

    # Backend and runtime, across the top.
    box(2, 83.5, 120, 6, OUTSIDE)
    text(3.5, 87.6, "Backend", 10.5, weight="bold")
    what = "sim: SimPy and a cost model. exec: torch and a worker. No decision is made here."
    text(3.5, 85.3, what)
    box(2, 71.5, 120, 6, OUTSIDE)
    text(3.5, 75.6, "Runtime.on(event, now) → actions", 10.5, weight="bold")
    text(3.5, 73.3, "Dispatches by the kind of event, then lets the cluster finish its agenda.")
    arrow(18, 83.4, 18, 77.7)
    text(19.2, 80.6, "events: arrived, landed, copies_done, device_lost, timer, …", 8.2)
    arrow(103, 77.7, 103, 83.4)
    text(101.8, 80.6, "actions: step, cut, copy, release, place, switch, …", 8.2, ha="right")

    # The two machines.
    left, right, top, low = 2, 89, 67, 20
    box(left, low, 33, top - low, CLUSTER)
    text(left + 1.2, top - 2.1, "ClusterMachine", 11, weight="bold")
    text(left + 1.2, top - 4.3, "what lies between engines", 8, color=SOFT)
    cells(left + 1.2, top - 6.2, 30.6, CLUSTER, CLUSTER_PARTS)
    for shift in (1.4, 0.7):
        box(right + shift, low - shift, 33 - 1.4, top - low, ENGINE)
    box(right, low, 33 - 1.4, top - low, ENGINE)
    text(right + 1.2, top - 2.1, "EngineMachine", 11, weight="bold")
    text(right + 1.2, top - 4.3, "one per engine: its state and its books", 8, color=SOFT)
    end = cells(right + 1.2, top - 6.2, 29.2, ENGINE, ENGINE_PARTS)
    text(right + 1.2, end - 1.4, "landed: books of a step that is over", 8.2, weight="bold")
    text(right + 1.2, end - 3.7, "decide: the next step, to a fixpoint", 8.2, weight="bold")
    arrow(18, 71.4, 18, 67.2)
    text(19.2, 69.3, "rows, copies, devices, timers", 8.2)
    arrow(103, 71.4, 103, 67.2)
    text(101.8, 69.3, "landed, drained: booked, then decided at once", 8.2, ha="right")

    # Calls between them.
    def calls(y: float, title: str, items: tuple[Any, ...], colour: str, *, up: bool) -> None:
        ends = (right - 0.4, left + 33.4) if up else (left + 33.4, right - 0.4)
        arrow(ends[0], y, ends[1], y, colour)
        text(62, y + 1.5, title, 9.2, ha="center", weight="bold", color=colour)
        for what, names in items:
            y -= 1.8
            text(58.1, y, what, 7.9, ha="right", color=SOFT)
            text(59.1, y, ", ".join(names), 7.9, family="monospace")

    calls(64, "up: what an engine asks of the cluster", UP, EDGE[ENGINE], up=True)
    calls(40.6, "down: what the cluster tells an engine", DOWN,
          EDGE[CLUSTER], up=False)  # fmt: skip

    # The agenda.
    box(left, 10.3, 33, 6.2, CLUSTER)
    text(left + 1.2, 14.6, "agenda", 9.5, weight="bold")
    text(left + 1.2, 12.2, "engines that may have more to do now", 8, color=SOFT)
    arrow(18, 19.9, 18, 16.8, EDGE[CLUSTER])
    text(37.5, 15.4, "kick, after the event: decide, if no step is launched;", 8.4)
    text(37.5, 13.2, "else cut the launched step, and decide when it lands", 8.4)
    axes.plot((35.4, 104), (11.2, 11.2), color=EDGE[CLUSTER], lw=1.5)
    arrow(104, 11.0, 104, 18.6, EDGE[CLUSTER])

    # The policy.
    box(2, 1.4, 120, 6.4, OUTSIDE)
    text(3.5, 5.7, "Policy, compiled once", 10.5, weight="bold")
    asked = "Engines ask order, admission, batching, phase and memory; the cluster asks "
    asked += "placement, tail, recovery and predictor. Parts read and answer."
    text(3.5, 3.3, asked, 8.2)
    figure.savefig(file, facecolor=PAPER, metadata={"Date": None} if file.suffix == ".svg" else {})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
