"""Tail batching, re-enacted: rounds that begin more rows than they need, and long rounds for what
they gave up. It asks a simulator for the ends of rows, and schedules none itself.

Source: RollPacker (arXiv 2509.21009), its section on tail batching.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from batchgen.trace.table import Trace, make_trace

Ends = Callable[[Trace], NDArray[np.int64]]
"""When each row of a trace ends, all of them there at 0, in ps."""


class Rounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A round needs `answers` to each of `prompts`; a short one begins `more` times as many of
    both, and after `short` of them comes a long one. part_of_step: rollouts of a step's time."""

    prompts: int
    answers: int
    more: float
    short: int
    part_of_step: float


def seconds(trace: Trace, rounds: Rounds, ends: Ends) -> tuple[float, float]:
    """Seconds of all steps for the prompts of a trace, in rounds as they come and by tail batching.
    The trace has as many answers to a prompt as short rounds begin, one prompt after the other, and
    prompts for all short rounds."""
    begun, drawn = round(rounds.more * rounds.prompts), round(rounds.more * rounds.answers)
    rows = np.arange(len(trace)).reshape(-1, drawn)
    if (
        len(rows) != rounds.short * begun
        or rounds.short * (begun - rounds.prompts) != rounds.prompts
    ):
        raise ValueError(f"{len(rows)} prompts make no {rounds.short} short rounds and a long one")
    needed = rows[:, : rounds.answers]
    plain = sum(
        int(ends(_only(trace, needed[first : first + rounds.prompts])).max())
        for first in range(0, len(rows), rounds.prompts)
    )
    packed, left = 0, []
    for first in range(0, len(rows), begun):
        mine = rows[first : first + begun]
        done = np.sort(ends(_only(trace, mine)).reshape(mine.shape), axis=1)[:, rounds.answers - 1]
        order = np.argsort(done, kind="stable")
        packed += int(done[order[rounds.prompts - 1]])
        left.append(needed[first + order[rounds.prompts :]])
    packed += int(ends(_only(trace, np.concatenate(left))).max())
    others = plain * (1 / rounds.part_of_step - 1)
    return (plain + others) / 1e12, (packed + others) / 1e12


def _only(trace: Trace, rows: NDArray[Any]) -> Trace:
    """Some rows of a trace: each line of `rows` is a group."""
    chosen = rows.ravel()
    return make_trace(
        name=trace.name,
        prompt_tokens=trace.prompt_tokens[chosen],
        output_tokens=trace.output_tokens[chosen],
        max_output_tokens=trace.max_output_tokens[chosen],
        group=np.repeat(np.arange(len(rows), dtype=np.int32), rows.shape[1]),
    )
