"""The end of a pass: its logits become the next tokens of rows, and some rows end by theirs.

Columns of the pass; rows that ask for nothing cost one argmax and an entry in each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from batchgen.exec.adjust import adjust
from batchgen.exec.blocks import Blocks
from batchgen.exec.logprobs import Logprobs, TokenLogprobs, measure
from batchgen.exec.rows import FAILED, REASONS, RUNNING, STOP, Ints, Rows
from batchgen.exec.sampler import choose

Flags = npt.NDArray[np.bool_]


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
    # Before any row changes: a device that has no memory for this gets the pass again, in parts.
    some, fine = np.flatnonzero(told & ~adjusted & ~bad), np.flatnonzero(~bad[both])
    noted = _logprobs(columns, slots[some], blocks, some, tokens[some])
    if own is not None:
        noted += _logprobs(columns, slots[both[fine]], own, fine, tokens[both[fine]])
    outcome = accept(columns, rows, slots, tokens, running & ~bad, bad)
    for kept, one in noted:
        kept.tokens.append(one)
    return outcome


def accept(
    columns: Rows, rows: Sequence[int], slots: Ints, tokens: Ints, good: Flags, bad: Flags
) -> tuple[list[tuple[int, str]], list[tuple[int, str, str]]]:
    """Rows [R] get their `tokens` where these are `good`, and fail where they are `bad`; returns
    who ended, (row, reason), and who failed, (row, code, why)."""
    columns.make_room(slots[good])
    columns.ended[slots[bad]] = FAILED
    failed = [(rows[number], "non_finite_logits", "") for number in np.flatnonzero(bad).tolist()]
    chosen = np.flatnonzero(good)
    why = columns.append(slots[chosen], tokens[chosen])
    for number in np.flatnonzero(columns.options.watched[slots[chosen]] & (why != STOP)).tolist():
        if columns.text_stops(int(slots[chosen[number]])):
            why[number] = STOP
    over = np.flatnonzero(why != RUNNING)
    finished = [
        (rows[number], REASONS[reason])
        for number, reason in zip(chosen[over].tolist(), why[over].tolist(), strict=True)
    ]
    return finished, failed


def _logprobs(
    columns: Rows, slots: Ints, blocks: Blocks, rows: Ints, tokens: Ints
) -> list[tuple[Logprobs, TokenLogprobs]]:
    """What the tokens of `slots` add to what is kept of them; their logits are `rows` of the
    blocks."""
    if not len(slots):
        return []
    options = columns.options
    kept = [options.state[slot].logprobs for slot in slots.tolist()]
    found = measure(blocks, rows, tokens, options.logprobs[slots])
    return [(ours, one) for ours, one in zip(kept, found, strict=True) if ours is not None]
