"""What a planning order part is shown and what it answers: rows with their page keys in, an order
out. It plans nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from batchgen.sequence import Table


class Unit(NamedTuple):
    """What a plan says of the rows that it schedules as one: compute density (compute time over
    memory time, in any unit), mean prompt and output tokens."""

    density: float
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Rows of one lane. `keys` are the chained keys of a row's full prompt pages, none without a
    prefix index; `ended`: rows that were awaited and have ended well, whose output is known. mixes:
    prompts run beside decodes there; else they have phases of their own."""

    table: Table
    rows: Sequence[int]
    ended: Sequence[int]
    keys: Callable[[int], Sequence[int]]
    page_tokens: int
    mixes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """All of the rows in their order. The first `awaited` are samples: when all of them have ended,
    the rest is arranged anew. units: of every row, for parts that deal from both ends; whole: of
    all rows together. works: of every row, the tokens it computes and the KV tokens it reads, for
    parts that pace prompts."""

    order: list[int]
    awaited: int = 0
    units: dict[int, Unit] = field(default_factory=dict)
    works: dict[int, tuple[int, int]] = field(default_factory=dict)
    whole: Unit = Unit(1.0, 1.0, 1.0)  # noqa: RUF009 (a tuple of numbers)
