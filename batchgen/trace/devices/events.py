"""One trouble of a device, and a trace of them. It reads no file and composes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from batchgen.errors import UserError

NORMAL = 1000
"""Factors are kept in thousandths."""
MAX_S = 4_000_000  # a time and a spell on top of it stay inside int64 picoseconds
MAX_PS = MAX_S * 10**12
MAX_DEVICES = 1_000_000
KINDS = ("slow", "lost", "notice", "back", "host", "skew")
TIMED = frozenset({"slow", "lost", "host", "skew"})
"""Kinds that may end by themselves."""
FACTORS = {"slow": (1, 1_000_000), "host": (NORMAL, 1_000_000), "skew": (0, 10_000)}
"""Kinds with a factor, and its range in thousandths. That of "skew" is an exponent."""


class Trouble(msgspec.Struct, frozen=True, gc=False):
    """One line of a device trace: at a GPU, at all GPUs of a node, or (skew) of the cluster.

    factor in thousandths: time of passes over the normal (slow), time of copies between HBM and
    host (host), exponent of the experts' load (skew). for_ps 0: it stands until another line of
    its kind (of a loss: until "back"). deadline_ps: from the notice to the loss.
    """

    at_ps: int
    kind: str
    gpu: int = -1
    node: int = -1
    factor: int = 0
    for_ps: int = 0
    deadline_ps: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """(gpu, node), of which one at least is -1."""
        return self.gpu, self.node


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTrace:
    """Troubles in the order of the file. gpus, gpus_per_node and span_ps: 0 where not known."""

    name: str
    troubles: tuple[Trouble, ...]
    gpus: int = 0
    gpus_per_node: int = 0
    span_ps: int = 0
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def end_ps(self) -> int:
        """When its last spell ends, or its span."""
        ends = (one.at_ps + max(one.for_ps, one.deadline_ps) for one in self.troubles)
        return self.span_ps or max(ends, default=0)

    def sizes(self) -> tuple[int, int]:
        """(GPUs, GPUs per node): as the trace says, else the fewest that have all its lines."""
        most_node = max((one.node for one in self.troubles), default=-1)
        if most_node >= 0 and not self.gpus_per_node:
            raise UserError(
                f"{self.name} names nodes and not how many GPUs a node has",
                remedy='put "gpus_per_node" into its first line (docs/device-traces.md)',
            )
        per_node = self.gpus_per_node or 1
        most = max((one.gpu for one in self.troubles), default=-1)
        return max(self.gpus, most + 1, (most_node + 1) * per_node, 1), per_node

    def window(self, start_ps: int, duration_ps: int = 0) -> DeviceTrace:
        """The part from start_ps on (duration_ps 0: to the end), with what stands then, at 0."""
        end_ps = start_ps + duration_ps if duration_ps else max(self.end_ps, start_ps) + 1
        before = _standing(one for one in self.troubles if one.at_ps < start_ps)
        kept = [msgspec.structs.replace(one, at_ps=0) for one in before if not one.for_ps]
        for one in self.troubles:
            ends = min(one.at_ps + one.for_ps, end_ps) if one.for_ps else 0
            if one.at_ps >= end_ps or (one.at_ps < start_ps and ends <= start_ps):
                continue
            begins = max(one.at_ps, start_ps)
            kept.append(
                msgspec.structs.replace(
                    one, at_ps=begins - start_ps, for_ps=ends - begins if ends else 0
                )
            )
        return replace(self, troubles=tuple(kept), span_ps=duration_ps or end_ps - 1 - start_ps)

    def first_gpus(self, count: int) -> DeviceTrace:
        """Without lines of GPUs from `count` on, and of nodes that are not whole below it."""
        nodes = count // (self.gpus_per_node or 1)
        kept = tuple(one for one in self.troubles if one.gpu < count and one.node < nodes)
        return replace(self, troubles=kept, gpus=min(self.gpus, count) if self.gpus else count)


def _standing(troubles: Iterable[Trouble]) -> list[Trouble]:
    """Lines without an end that no later line of their place supersedes. A notice that a loss or a
    "back" followed is over, and so is the loss before a "back"."""
    last: dict[tuple[str, tuple[int, int]], Trouble] = {}
    for one in sorted(troubles, key=lambda one: one.at_ps):
        place = one.place
        if one.kind in ("back", "lost"):
            last.pop(("notice", place), None)
        if one.for_ps:
            continue
        if one.kind == "back":
            last.pop(("lost", place), None)
        last.pop((one.kind, place), None)
        last[one.kind, place] = one
    # Where nothing is wrong with a place, only a line of its node could have put it wrong.
    mixed = len({one.node < 0 for one in last.values() if one.kind != "skew"}) > 1
    return [one for one in last.values() if mixed or not _heals(one)]


def _heals(one: Trouble) -> bool:
    return one.kind == "back" or (one.kind in ("slow", "host") and one.factor == NORMAL)
