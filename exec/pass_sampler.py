"""The end of a pass: its logits become the next tokens of rows, and some rows end by theirs.

Columns of the pass; rows that ask for nothing cost one argmax and an entry in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from batchgen.exec.adjust import adjust
from batchgen.exec.logprobs import measure
from batchgen.exec.rows import FAILED, REASONS, RUNNING, STOP, Ints, Rows
from batchgen.exec.sampler import choose


@torch.inference_mode()
def next_tokens(
    columns: Rows, rows: Sequence[int], logits_RV: torch.Tensor
) -> tuple[list[tuple[int, str]], list[tuple[int, str, str]]]:
    """Give each row its next token; returns who ended by it, (row, reason), and who failed,
    (row, code, why). The logits may be changed."""
    if not rows:
        return [], []
    slots, options = columns.slots(rows), columns.options
    running = columns.ended[slots] == RUNNING  # the others are ghosts
    told = np.flatnonzero(running & (options.logprobs[slots] >= 0))
    changed = np.flatnonzero(running & options.adjusted[slots])
    # An index copies: these are the model's own logits, whatever becomes of the others.
    own = logits_RV[torch.from_numpy(told).to(logits_RV.device)] if len(told) else None
    if len(changed):
        adjust(logits_RV, changed, slots[changed], columns)
    drawing = np.flatnonzero(running & options.drawing[slots])
    draws = options.draws(slots[drawing], columns.produced(slots[drawing]))
    tokens = choose(logits_RV, drawing, draws)
    bad = running & (tokens >= logits_RV.shape[-1])
    columns.ended[slots[bad]] = FAILED
    failed = [(rows[number], "non_finite_logits", "") for number in np.flatnonzero(bad).tolist()]
    good = np.flatnonzero(running & ~bad)
    why = columns.append(slots[good], tokens[good])
    for number in np.flatnonzero(options.watched[slots[good]] & (why != STOP)).tolist():
        if columns.text_stops(int(slots[good[number]])):
            why[number] = STOP
    if own is not None:
        _note_logprobs(columns, slots, told, own, tokens, bad)
    over = np.flatnonzero(why != RUNNING)
    finished = [
        (rows[number], REASONS[reason])
        for number, reason in zip(good[over].tolist(), why[over].tolist(), strict=True)
    ]
    return finished, failed


def _note_logprobs(
    columns: Rows,
    slots: Ints,
    told: Ints,
    own: torch.Tensor,
    tokens: Ints,
    bad: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> None:
    """Keep the log probabilities of the tokens of rows `told`, whose logits were `own`."""
    kept = np.flatnonzero(~bad[told])
    if not len(kept):
        return
    if len(kept) < len(told):
        own, told = own[torch.from_numpy(kept).to(own.device)], told[kept]
    options = columns.options
    found = measure(own, tokens[told], options.logprobs[slots[told]])
    for slot, one in zip(slots[told].tolist(), found, strict=True):
        kept_of_row = options.state[slot].logprobs
        assert kept_of_row is not None
        kept_of_row.tokens.append(one)
