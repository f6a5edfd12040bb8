"""What a table of sequences says of a job while it runs: who runs, who waits, what is left. Pure:
it reads columns, and changes nothing.

One look costs a few passes over the columns, so whoever asks often has to see to it himself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchgen.sequence import Status, Table

RUNNING = (Status.PREFILL, Status.DECODE, Status.STALLED, Status.EXTENDING, Status.DOUBT)
PHASES = ("fill", "steady", "tail")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """How many sequences `running` have a place on the device, `waiting` have none (those suspended
    to the host too), `ended` have ended; `prefilling` are those of the first that prefill."""

    running: int
    waiting: int
    ended: int
    prefilling: int

    @property
    def phase(self) -> str:
        """fill: places are being taken, and nobody has ended. steady: whoever ends makes place for
        one who waits. tail: nobody waits, places that become empty stay so."""
        if not self.ended and (self.waiting or self.prefilling):
            return "fill"
        return "steady" if self.waiting else "tail"


def places_of(table: Table) -> Places:
    """One quick pass over the column of the table's statuses."""
    counts = np.bincount(table.status, minlength=len(Status))
    ended = int(counts[Status.DONE] + counts[Status.FAILED])
    running = int(sum(counts[one] for one in RUNNING))
    return Places(
        running=running,
        waiting=len(table) - ended - running,
        ended=ended,
        prefilling=int(counts[Status.PREFILL]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Sequences that have produced something [rows]: tokens of their prompts, of output so far,
    and most that there may be. `is_over`: it has ended; `stopped`: it did so before its budget.
    weight: it stands for so many alike."""

    prompt: Ints
    produced: Ints
    budget: Ints
    is_over: npt.NDArray[np.bool_]
    stopped: npt.NDArray[np.bool_]
    weight: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is left. prompt_left: tokens without KV that rows must have before they can decode, some
    of which may be there already as prefixes of others; prompt_done: prompt tokens of rows that
    had all of theirs.

    Of the sequences that have neither produced anything nor ended each that is here, with its
    `fresh_prompt` and `fresh_budget`, stands for `fresh_counts`. waits: some have no place.
    """

    begun: Begun
    fresh_prompt: Ints
    fresh_budget: Ints
    fresh_counts: Ints
    prompt_left: int
    prompt_done: int
    waits: bool


MOST = 1 << 15
"""Of more rows than that, evenly spread ones stand for all: nobody needs more for an estimate."""


def load_of(table: Table, decode_clock: int) -> Load:
    """`decode_clock`: decode passes of the engine so far; running rows grow by it (`Table`)."""
    status = table.status
    is_over = status >= Status.DONE
    has_some = (table.produced > 0) | (status == Status.DECODE)
    done = (is_over & has_some) | (status == Status.DECODE)
    ended, times_ended = _some(np.flatnonzero(is_over & has_some))
    going, times_going = _some(np.flatnonzero(has_some & ~is_over))
    fresh, times_fresh = _some(np.flatnonzero(~(has_some | is_over)))
    rows = np.concatenate((ended, going))
    prompt = table.prompt[rows].astype(np.int64)
    produced, budget = table.produced[rows].astype(np.int64), table.budget[rows].astype(np.int64)
    decodes = status[rows] == Status.DECODE
    computed = table.offset[rows] + decode_clock
    produced = np.where(decodes, np.maximum(computed - prompt + 1, produced), produced)
    produced = np.minimum(produced, budget)
    # Decoding rows have KV of all but their newest token; others may have some on the host.
    others = np.flatnonzero(~is_over & (status != Status.DECODE))
    have = np.maximum(table.computed[others], table.host_valid[others])
    known = table.prompt[others] + table.produced[others]
    weight = np.full(len(rows), times_going, dtype=np.int64)
    weight[: len(ended)] = times_ended
    return Load(
        begun=Begun(
            prompt=prompt,
            produced=produced,
            budget=budget,
            is_over=is_over[rows],
            stopped=(status[rows] == Status.DONE) & (produced < budget),
            weight=weight,
        ),
        fresh_prompt=table.prompt[fresh].astype(np.int64),
        fresh_budget=table.budget[fresh].astype(np.int64),
        fresh_counts=np.full(len(fresh), times_fresh, dtype=np.int64),
        prompt_done=int(table.prompt[done].sum(dtype=np.int64)),
        prompt_left=int(np.maximum(known - have, 0).sum(dtype=np.int64)),
        waits=places_of(table).waiting > 0,
    )


def _some(rows: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], int]:
    """Every n-th row, and n."""
    step = -(-len(rows) // MOST) or 1
    return rows[::step], step
