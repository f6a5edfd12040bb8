"""How the resident rows sample, as columns [slots], and what is kept for the rows that ask for it.

A row that asks for nothing is a few zeros here. Only rows with penalties, stop texts or log
probabilities have a `RowState`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchgen.exec.adjust import TokenCounts
from batchgen.exec.logprobs import Logprobs
from batchgen.exec.sampler import Draws
from batchgen.exec.stops import StopWatch
from batchgen.job.sampling import Sampling

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PLAIN = Sampling()


@dataclass(slots=True, kw_only=True)
class RowState:
    """What follows the tokens of one row; None where the row does not ask for it."""

    counts: TokenCounts | None = None
    watch: StopWatch | None = None
    logprobs: Logprobs | None = None
    bias: tuple[Ints, npt.NDArray[np.float32]] | None = None  # ids and what is added


class RowOptions:
    """Columns [slots] by the names of `Sampling`. Flags: `drawing` rows do not take the best token,
    `adjusted` ones change their logits first, `watched` ones may end by a text."""

    FLOATS = (
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    )
    INTS = ("top_k", "min_tokens", "logprobs")
    FLAGS = ("drawing", "adjusted", "watched")

    temperature: Floats
    top_p: Floats
    min_p: Floats
    repetition_penalty: Floats
    presence_penalty: Floats
    frequency_penalty: Floats
    top_k: Ints
    min_tokens: Ints
    logprobs: Ints  # -1: none
    drawing: Flags
    adjusted: Flags
    watched: Flags

    def __init__(self) -> None:
        self.seeds: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        for names, dtype in ((self.FLOATS, float), (self.INTS, np.int64), (self.FLAGS, bool)):
            for name in names:
                setattr(self, name, np.zeros(0, dtype=dtype))
        self.state: dict[int, RowState] = {}

    def grow(self, slots: int) -> None:
        """Room for so many slots; no fewer than there are."""
        for name in ("seeds", *self.FLOATS, *self.INTS, *self.FLAGS):
            column = getattr(self, name)
            larger = np.zeros(slots, dtype=column.dtype)
            larger[: len(column)] = column
            setattr(self, name, larger)

    def set(self, slot: int, sampling: Sampling | None, watch: StopWatch | None) -> None:
        """A row takes the slot; `sampling` None is greedy."""
        one = PLAIN if sampling is None else sampling
        for name in (*self.FLOATS, "top_k", "min_tokens"):
            getattr(self, name)[slot] = getattr(one, name)
        self.logprobs[slot] = -1 if one.logprobs is None else one.logprobs
        self.seeds[slot] = one.seed % (1 << 64)
        self.drawing[slot] = not one.greedy
        self.adjusted[slot] = one.penalised or bool(one.logit_bias) or one.min_tokens > 0
        self.watched[slot] = watch is not None
        self.state.pop(slot, None)
        if watch is not None or one.penalised or one.logit_bias or one.logprobs is not None:
            ids = np.array([token for token, _ in one.logit_bias], dtype=np.int64)
            added = np.array([bias for _, bias in one.logit_bias], dtype=np.float32)
            self.state[slot] = RowState(
                counts=TokenCounts() if one.penalised else None,
                watch=watch,
                logprobs=None if one.logprobs is None else Logprobs(),
                bias=(ids, added) if one.logit_bias else None,
            )

    def draws(self, slots: Ints, counters: Ints) -> Draws:
        """How these rows draw their next token; `counters` are the tokens that they have drawn."""
        return Draws(
            temperature=self.temperature[slots],
            top_p=self.top_p[slots],
            min_p=self.min_p[slots],
            top_k=self.top_k[slots],
            seeds=self.seeds[slots],
            counters=counters,
        )
