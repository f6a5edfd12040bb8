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
    and most that there may be. `is_over`: it has ended; `stopped`: it did so before its budget."""

    prompt: Ints
    produced: Ints
    budget: Ints
    is_over: npt.NDArray[np.bool_]
    stopped: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is left. prompt_left: tokens without KV that must be computed before rows can decode.

    Of the sequences that have neither produced anything nor ended there are `counts` [kinds] with
    such a `fresh_prompt` (to a twelfth or so) and `fresh_budget`. waits: some have no place.
    """

    begun: Begun
    fresh_prompt: Ints
    fresh_budget: Ints
    fresh_counts: Ints
    prompt_left: int
    waits: bool


def load_of(table: Table, decode_clock: int) -> Load:
    """`decode_clock`: decode passes of the engine so far; running rows grow by it (`Table`)."""
    status = table.status
    rows = np.flatnonzero((table.produced > 0) | (status == Status.DECODE))
    prompt = table.prompt[rows].astype(np.int64)
    produced, budget = table.produced[rows].astype(np.int64), table.budget[rows].astype(np.int64)
    decodes = status[rows] == Status.DECODE
    computed = table.offset[rows] + decode_clock
    produced = np.where(decodes, np.maximum(computed - prompt + 1, produced), produced)
    produced = np.minimum(produced, budget)
    fresh = (table.produced == 0) & (status < Status.DONE) & (status != Status.DECODE)
    kinds, counts = np.unique(
        (_EIGHTHS[np.minimum(table.prompt[fresh], len(_EIGHTHS) - 1)].astype(np.int64) << 32)
        + table.budget[fresh],
        return_counts=True,
    )
    # Decoding rows have KV of all but their newest token; others may have some on the host.
    others = (status < Status.DONE) & (status != Status.DECODE)
    have = np.maximum(table.computed[others], table.host_valid[others])
    known = table.prompt[others] + table.produced[others]
    return Load(
        begun=Begun(
            prompt=prompt,
            produced=produced,
            budget=budget,
            is_over=status[rows] >= Status.DONE,
            stopped=(status[rows] == Status.DONE) & (produced < budget),
        ),
        fresh_prompt=np.exp2((kinds >> 32) / 8).round().astype(np.int64),
        fresh_budget=kinds & 0xFFFFFFFF,
        fresh_counts=counts.astype(np.int64),
        prompt_left=int(np.maximum(known - have, 0).sum()),
        waits=places_of(table).waiting > 0,
    )


_EIGHTHS = np.round(8 * np.log2(np.maximum(np.arange(1 << 17), 1))).astype(np.int16)
"""Of a number of tokens, which of eight steps between two powers of two it is next to."""
