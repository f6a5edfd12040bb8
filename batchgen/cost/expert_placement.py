"""Which experts lie on which rank when their loads are known: replication, then balanced packing.

The two steps of DeepSeek's EPLB (github.com/deepseek-ai/EPLB), global form: spare slots go one by
one to the expert whose copies carry most, then every rank gets as many copies as any other, the
heaviest first, each to the lightest rank that has a slot left. Pure; loads are given.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def copies_of(loads: Sequence[float], spare: int) -> list[int]:
    """Copies [E] of each expert with `spare` slots beyond one each: the largest load of a copy is
    as small as so many slots allow. Of equals the lowest number first."""
    copies = [1] * len(loads)
    heaviest = [(-load, expert) for expert, load in enumerate(loads)]
    heapq.heapify(heaviest)
    for _ in range(spare):
        _, expert = heaviest[0]
        copies[expert] += 1
        heapq.heapreplace(heaviest, (-loads[expert] / copies[expert], expert))
    return copies


def packed(loads: Sequence[float], ranks: int) -> list[int]:
    """The rank [items] of each item; `ranks` divides their number, and all get as many. Of equals
    the lowest number first."""
    if len(loads) % ranks:
        raise ValueError(f"{len(loads)} items do not fill {ranks} ranks evenly")
    room = len(loads) // ranks
    lightest = [(0.0, rank) for rank in range(ranks)]
    held = [0] * ranks
    place = [0] * len(loads)
    for item in sorted(range(len(loads)), key=lambda one: -loads[one]):
        load, rank = heapq.heappop(lightest)
        place[item] = rank
        held[rank] += 1
        if held[rank] < room:
            heapq.heappush(lightest, (load + loads[item], rank))
    return place


def rank_loads(loads: Sequence[float], ranks: int, spare: int) -> list[float]:
    """Load [ranks] of each rank; the copies of an expert share its load evenly."""
    copies = copies_of(loads, spare)
    slots = [load / count for load, count in zip(loads, copies, strict=True) for _ in range(count)]
    found = [0.0] * ranks
    for load, rank in zip(slots, packed(slots, ranks), strict=True):
        found[rank] += load
    return found
