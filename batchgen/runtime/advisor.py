"""Cost questions that decisions need; answered by what is injected, purely, alike for both
backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

HOME = "home"
"""The layout of the plan."""

Link = Literal["host", "intra", "inter"]
"""Between HBM and host of a node, inside a node, between nodes."""

RankLoad = tuple[int, int, int, int, int, int, int]
"""One rank in one pass: the fields of `batchgen.cost.api.PassLoad`, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A layout for a tail: `num_ranks` ranks of `hbm_pages` pages each; times of a decode pass now
    and then, and of the switch itself, in ps."""

    layout: str
    num_ranks: int
    hbm_pages: int
    now_ps: int
    then_ps: int
    switch_ps: int


class Advisor(Protocol):
    """Injected by a backend that has a cost model; None where there is none."""

    def partition(self, engine: int, contexts: Sequence[int], current: str) -> Offer:
        """The best layout for decoding rows with these KV lengths, among those whose pools hold
        them; without a better one it names `current`."""
        ...

    def expected_ps(self, engine: int, layout: str, loads: Sequence[RankLoad]) -> int:
        """Time that one pass of these loads, one entry per rank, should take on a healthy
        engine."""
        ...

    def copy_ps(self, tokens: int, link: Link) -> int:
        """Time to copy the KV of a row of so many tokens to another engine over a link."""
        ...

    def recompute_ps(self, tokens: int) -> int:
        """Time to prefill so many tokens of a row anew."""
        ...
