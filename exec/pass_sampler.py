"""The end of a pass: its logits become the next tokens of rows, and some rows end by theirs.

Columns of the pass; rows that ask for nothing cost one argmax and an entry in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from batchgen.exec.adjust import adjust
from batchgen.exec.blocks import Blocks
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
    adjusted = running & options.adjusted[slots]
    told = running & (options.logprobs[slots] >= 0)
    changed, both = np.flatnonzero(adjusted), np.flatnonzero(adjusted & told)
    # An index copies: log probabilities are of the model's own logits.
    own = Blocks.of(logits_RV[torch.from_numpy(both).to(logits_RV.device)]) if len(both) else None
    if len(changed):
        adjust(logits_RV, changed, slots[changed], columns)
    drawing = np.flatnonzero(running & options.drawing[slots])
    draws = options.draws(slots[drawing], columns.produced(slots[drawing]))
    blocks = Blocks.of(logits_RV)
    tokens = choose(blocks, drawing, draws)
    bad = running & (tokens >= logits_RV.shape[-1])
    columns.ended[slots[bad]] = FAILED
    failed = [(rows[number], "non_finite_logits", "") for number in np.flatnonzero(bad).tolist()]
    good = np.flatnonzero(running & ~bad)
    why = columns.append(slots[good], tokens[good])
    for number in np.flatnonzero(options.watched[slots[good]] & (why != STOP)).tolist():
        if columns.text_stops(int(slots[good[number]])):
            why[number] = STOP
    if told.any():
        untouched = np.flatnonzero(told & ~adjusted & ~bad)
        _note_logprobs(columns, slots[untouched], blocks, untouched, tokens[untouched])
    if own is not None:
        fine = np.flatnonzero(~bad[both])
        _note_logprobs(columns, slots[both[fine]], own, fine, tokens[both[fine]])
    over = np.flatnonzero(why != RUNNING)
    finished = [
        (rows[number], REASONS[reason])
        for number, reason in zip(good[over].tolist(), why[over].tolist(), strict=True)
    ]
    return finished, failed


def _note_logprobs(columns: Rows, slots: Ints, blocks: Blocks, rows: Ints, tokens: Ints) -> None:
    """Keep the log probabilities of tokens of `slots`, whose logits are `rows` of the blocks."""
    if not len(slots):
        return
    options = columns.options
    found = measure(blocks, rows, tokens, options.logprobs[slots])
    for slot, one in zip(slots.tolist(), found, strict=True):
        kept = options.state[slot].logprobs
        assert kept is not None
        kept.tokens.append(one)
