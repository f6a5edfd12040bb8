"""Machines that come and go, as losses and returns of the places that they fill. Reads no file.

A place (a GPU, or a node) has one machine at a time. Public spot traces tell of machines by name,
or only how many were up; either becomes lines of places here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from heapq import heappop, heappush

from batchgen.trace.devices.events import Trouble


def places_of(
    changes: Iterable[tuple[int, bool, str]], notice_ps: int
) -> tuple[list[Trouble], int]:
    """(Troubles, places) of (time, whether it comes, name) in order of time: each machine takes the
    lowest free place. Places that are empty at 0 are lost there. Raises KeyError for a machine that
    goes and was not there, ValueError for one that comes twice."""
    free: list[int] = []
    place: dict[str, tuple[int, int]] = {}  # name -> (place, since)
    filled: dict[int, int] = {}  # place -> when it was first filled
    found: list[Trouble] = []
    for at_ps, comes, name in changes:
        if comes:
            if name in place:
                raise ValueError(name)
            number = heappop(free) if free else len(filled)
            place[name] = number, at_ps
            if number in filled or at_ps:
                found.append(Trouble(at_ps, "back", number))
            filled.setdefault(number, at_ps)
        else:
            number, since = place.pop(name)
            heappush(free, number)
            found += _reclaim(at_ps, number, min(notice_ps, at_ps - since))
    found += [Trouble(0, "lost", number) for number, since in filled.items() if since]
    return in_order(found), len(filled)


def places_of_counts(
    counts: Iterable[tuple[int, int]], places: int, notice_ps: int, seed: int
) -> list[Trouble]:
    """Troubles of (time, machines that are up): a fall takes any of them, by the seed; a rise
    brings back those that were away longest. Raises ValueError for more machines than places."""
    rng = random.Random(seed)
    up = list(range(places))
    away: list[int] = []
    since = [0] * places
    found: list[Trouble] = []
    first = True
    for at_ps, count in counts:
        if not 0 <= count <= places:
            raise ValueError(count)
        if first:
            up, away = list(range(count)), list(range(count, places))
            found += [Trouble(at_ps, "lost", number) for number in away]
            first = False
        for number in sorted(rng.sample(up, max(0, len(up) - count))):
            up.remove(number)
            away.append(number)
            found += _reclaim(at_ps, number, min(notice_ps, at_ps - since[number]))
        while len(up) < count:
            number = away.pop(0)
            up.append(number)
            since[number] = at_ps
            found.append(Trouble(at_ps, "back", number))
    return in_order(found)


def _reclaim(at_ps: int, number: int, notice_ps: int) -> list[Trouble]:
    found = [Trouble(at_ps, "lost", number)]
    if notice_ps > 0:
        found.append(Trouble(at_ps - notice_ps, "notice", number, deadline_ps=notice_ps))
    return found


def in_order(found: list[Trouble]) -> list[Trouble]:
    """By time. At one time as they came, and notices last: they are of what is there then."""
    return sorted(found, key=lambda one: (one.at_ps, one.kind == "notice"))
