"""Stop texts: when the text of a row's tokens holds one, and where its answer is cut. No model.

Defined on whole texts, by `cut_text`. `StopWatch` finds the same from a few tokens per step: only
when the newest part of the text holds a stop is the whole text looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from batchgen.job.rows import JobRow

Decode = Callable[[Sequence[int]], str]
HALF_CHARACTER = "\ufffd"


def ending_ids(row: JobRow, eos_ids: frozenset[int]) -> frozenset[int]:
    """The tokens that end an answer of the row."""
    return row.stop_token_ids | (frozenset() if row.ignore_eos else eos_ids)


def cut_text(
    decode: Decode, tokens: Sequence[int], stops: Sequence[str], min_tokens: int = 0
) -> str | None:
    """The text before the first stop that is not complete before token number `min_tokens`; None
    without one."""
    text = decode(tokens)
    before = len(decode(tokens[: min_tokens - 1])) if min_tokens > 1 else 0
    found = (text.find(stop, max(0, before + 1 - len(stop))) for stop in stops)
    at = min((place for place in found if place >= 0), default=-1)
    return None if at < 0 else text[:at]


def said(
    decode: Decode,
    tokens: Sequence[int],
    *,
    ended_by_stop: bool,
    ending: frozenset[int],
    stops: Sequence[str],
    min_tokens: int,
) -> tuple[str, int]:
    """The text of an answer, and how many leading tokens have a part in it: neither the token that
    ended it nor the text that did."""
    count = len(tokens)
    if not ended_by_stop or not count:
        return decode(tokens), count
    if tokens[-1] in ending or not stops:
        return decode(tokens[:-1]), count - 1
    text = cut_text(decode, tokens, stops, min_tokens)
    if text is None:
        return decode(tokens), count
    while count and len(decode(tokens[: count - 1])) >= len(text):
        count -= 1
    return text, count


class StopWatch:
    """Looks for `stops` in the text of one row while it grows."""

    def __init__(self, stops: Sequence[str], decode: Decode, min_tokens: int = 0) -> None:
        self._stops = stops
        self._decode = decode
        self._min_tokens = min_tokens
        self._keep = max(map(len, stops)) - 1
        self._begin(0)

    def _begin(self, stage: int) -> None:
        self._stage = stage
        self._tail = ""  # the end of the text of the tokens before _read
        # Tokens from _first on are decoded together: some tokens look different behind nothing.
        self._first = self._read = 0
        self._shown = 0  # characters of tokens [_first, _read)

    def hit(self, stage: int, tokens: npt.NDArray[np.int32]) -> bool:
        """Whether the newest of `tokens`, all those of this stage, completes a stop."""
        if stage != self._stage:
            self._begin(stage)
        count = len(tokens)
        text = self._decode(tokens[self._first :].tolist())
        window = self._tail + text[self._shown :]
        if count >= self._min_tokens and any(stop in window for stop in self._stops):
            cut = cut_text(self._decode, tokens.tolist(), self._stops, self._min_tokens)
            if cut is not None:
                return True
        if len(text) > self._shown and not text.endswith(HALF_CHARACTER):
            self._tail = window[max(0, len(window) - self._keep) :]
            self._first, self._read = self._read, count
            self._shown = len(self._decode(tokens[self._first : self._read].tolist()))
        return False
