"""What the answers of parts may be: types, ranges, and rows that must all be there."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

from batchgen.memory.pool import pages_for
from batchgen.oneline import shown
from batchgen.policy.arrangement import Arrangement
from batchgen.policy.base import Part
from batchgen.runtime.advisor import Offer

ASKED: dict[str, tuple[str, ...]] = {
    "order": ("shares", "lane", "key", "matches", "arrange", "end"),
    "admission": ("lease", "room", "room_for"),
    "batching": ("pace",),
    "phase": ("starts_prefill", "gathered", "takes"),
    "memory": ("boundaries_ahead", "rank_victim"),
    "placement": ("steals", "steal_min", "work", "place", "choose", "is_slow", "is_late"),
    "tail": ("layout",),
    "predictor": ("new_state", "on_arrival", "on_completion"),
    "recovery": ("copies",),
}
"""What the runtime asks of the part of a slot."""


def wrong(part: Part, name: str, args: tuple[Any, ...], answer: Any) -> str:
    """What is wrong with an answer; empty when nothing is."""
    rule = RULES.get(name)
    return rule(part, args, answer) if rule is not None else ""


def _integer(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    if isinstance(answer, Integral):
        return ""
    return f"{shown(answer)} is a {type(answer).__name__}, not an integer"


def _lane(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    lanes = len(part.shares)  # type: ignore[attr-defined]
    if isinstance(answer, Integral) and 0 <= int(answer) < lanes:
        return ""
    return f"{shown(answer)} is no lane; it declares {lanes} shares"


def _lease(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    table, row, rank = args
    least = min(pages_for(table.v_prompt[row] + table.v_budget[row], rank.page_tokens), rank.size)
    if not isinstance(answer, Integral):
        return _integer(part, args, answer)
    if int(answer) < least:
        return f"{shown(answer)} pages, the worst case of row {row} is {least}"
    return ""


def _place(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    cluster, rows = args
    try:
        slots = [(row, engine, rank) for row, (engine, rank) in answer]
    except (TypeError, ValueError):
        return f"{shown(answer)} is no list of (row, (engine, rank))"
    if sorted(row for row, _, _ in slots) != sorted(rows):
        missing = [row for row in rows if row not in {row for row, _, _ in slots}]
        return f"rows {missing} have no place" if missing else "rows have several places, or none"
    ranks = {engine.id: engine.num_ranks for engine in cluster.takers}
    for row, engine, rank in slots:
        if engine not in ranks:
            return (
                f"row {row} on engine {shown(engine, 20)}, which takes no rows now: {sorted(ranks)}"
            )
        if not (isinstance(rank, Integral) and int(rank) >= 0):
            return f"row {row} on rank {shown(rank, 20)}"
    return ""


def _choose(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    _, row, engines = args
    if any(answer is engine for engine in engines):
        return ""
    return f"{type(answer).__name__} is none of the {len(engines)} engines offered for row {row}"


def _arrange(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    (waiting,) = args
    if not isinstance(answer, Arrangement):
        return f"{shown(answer)} is no Arrangement"
    if sorted(answer.order) != sorted(waiting.rows):
        return "its order does not hold every waiting row once"
    if not 0 <= answer.awaited <= len(answer.order):
        return f"it awaits {shown(answer.awaited)} of {len(answer.order)} rows"
    return ""


def _end(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    if isinstance(answer, Integral) and -1 <= int(answer) <= 1:
        return ""
    return f"{shown(answer)} is none of -1, 0 and 1"


def _layout(part: Part, args: tuple[Any, ...], answer: Any) -> str:
    if answer is None or isinstance(answer, Offer):
        return ""
    return f"{shown(answer)} is neither None nor an Offer"


RULES: dict[str, Callable[[Part, tuple[Any, ...], Any], str]] = {
    "key": _integer,
    "matches": _integer,
    "arrange": _arrange,
    "end": _end,
    "lane": _lane,
    "lease": _lease,
    "rank_victim": _integer,
    "boundaries_ahead": _integer,
    "pace": _integer,
    "steal_min": _integer,
    "work": _integer,
    "place": _place,
    "choose": _choose,
    "layout": _layout,
}
