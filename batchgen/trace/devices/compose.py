"""Troubles that overlap become changes of devices, one after the other. Pure; no engine, no clock.

Per GPU the worst of its spells counts, and it is healed, or back, only when all are over. What
several GPUs do to an engine is for the engine: as slow as its slowest, lost with any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import msgspec

from batchgen.trace.devices.events import NORMAL, Trouble

STANDING = -1
"""The spell of a line without an end."""
CLUSTER = -1
OWN_SKEW = -1
"""The skew that the load has by itself."""
ORDER = {"lost": 0, "back": 1, "notice": 2, "slow": 3, "host": 4, "skew": 5}

Edge = tuple[int, int, int, Trouble]
"""(time, 0 for the end of a spell and 1 for a line, number of the line, the line)."""


class Change(msgspec.Struct, frozen=True):
    """One change of one device. `speed` is the time of passes (kind "slow") or of copies of the
    host ("host") in thousandths of normal, or the experts' exponent in thousandths ("skew")."""

    at_ps: int
    kind: str
    gpu: int
    speed: int = NORMAL
    deadline_ps: int = 0

    def text(self) -> str:
        """For a person."""
        factor = f"{self.speed / NORMAL:g}"
        if self.kind == "skew":
            return "experts as at first" if self.speed == OWN_SKEW else f"expert skew {factor}"
        what = self.kind
        if self.kind == "slow":
            what = "back to speed" if self.speed == NORMAL else f"slow x{factor}"
        elif self.kind == "host":
            what = "host at ease" if self.speed == NORMAL else f"host x{factor}"
        return f"{what} (gpu {self.gpu})"


def compose(troubles: Sequence[Trouble], num_gpus: int, gpus_per_node: int) -> list[Change]:
    """All changes by time, then GPU. Lines of one time act in the order given, spells end before.

    A loss of an instant is one: a GPU whose loss and return have the same time is lost and back.
    """
    edges: dict[int, list[Edge]] = {}
    for number, one in enumerate(troubles):
        for gpu in gpus_of(one, num_gpus, gpus_per_node):
            own = edges.setdefault(gpu, [])
            own.append((one.at_ps, 1, number, one))
            if one.for_ps:
                own.append((one.at_ps + one.for_ps, 0, number, one))
    found: list[Change] = []
    for gpu, own in edges.items():
        own.sort(key=lambda edge: edge[:3])
        found += _changes(gpu, own)
    found.sort(key=lambda change: (change.at_ps, change.gpu, ORDER[change.kind]))
    return found


def gpus_of(one: Trouble, num_gpus: int, gpus_per_node: int) -> Iterable[int]:
    """The GPUs of a line; CLUSTER for what concerns all."""
    if one.node < 0:
        return (one.gpu,)
    first = one.node * gpus_per_node
    return range(first, min(first + gpus_per_node, num_gpus))


@dataclass(slots=True)
class _State:
    """What is wrong with one GPU: factors by spell, losses by spell, the deadline of a notice."""

    factors: dict[str, dict[int, int]] = field(
        default_factory=lambda: {"slow": {}, "host": {}, "skew": {}}
    )
    losses: set[int] = field(default_factory=set)
    deadline_ps: int | None = None

    def worst(self, kind: str) -> int:
        spells = self.factors[kind]
        return max(spells.values()) if spells else (OWN_SKEW if kind == "skew" else NORMAL)

    def end(self, kind: str, number: int) -> None:
        if kind == "lost":
            self.losses.discard(number)
        else:
            self.factors[kind].pop(number, None)

    def begin(self, number: int, one: Trouble) -> None:
        spell = number if one.for_ps else STANDING
        if one.kind in self.factors:
            spells = self.factors[one.kind]
            spells.pop(spell, None)
            if one.kind == "skew" or one.factor != NORMAL:
                spells[spell] = one.factor
        elif one.kind == "notice":
            at_ps = one.at_ps + one.deadline_ps
            self.deadline_ps = at_ps if self.deadline_ps is None else min(at_ps, self.deadline_ps)
        else:  # the loss that was announced has come, or will not come
            self.deadline_ps = None
            if one.kind == "lost":
                self.losses.add(spell)
            else:
                self.losses.discard(STANDING)


def _changes(gpu: int, edges: Sequence[Edge]) -> list[Change]:
    """The changes of one GPU, given the begins and ends of its troubles in order."""
    state = _State()
    found: list[Change] = []
    for at_ps, group in groupby(edges, key=lambda edge: edge[0]):
        was_down, was_noticed = bool(state.losses), state.deadline_ps
        were = {kind: state.worst(kind) for kind in state.factors}
        lost = False
        for _, begins, number, one in group:
            if begins:
                state.begin(number, one)
                lost = lost or one.kind == "lost"
            else:
                state.end(one.kind, number)
        is_down, noticed = bool(state.losses), state.deadline_ps
        falls = lost and not was_down
        returns = not is_down and (was_down or falls)
        if falls:
            found.append(Change(at_ps, "lost", gpu))
        if returns or (not is_down and was_noticed is not None and noticed is None):
            found.append(Change(at_ps, "back", gpu))
        if not is_down and noticed is not None and (returns or noticed != was_noticed):
            found.append(Change(at_ps, "notice", gpu, NORMAL, noticed))
        for kind, before in were.items():
            if state.worst(kind) != before:
                found.append(Change(at_ps, kind, gpu, state.worst(kind)))
    return found
