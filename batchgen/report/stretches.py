"""Steps cut where rows ended in them: a step of many passes begins with its first pass's rows, and
they do not all stay to its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.report.record import RunRecord

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stretches:
    """One entry per step, which ends with the step or the first end of a row in it, and one per
    such end, until the next or the end of the step.

    engine: of the step; start_ps, duration_ps: int64 picoseconds; running: rows in its passes;
    kv_pages: leased, mean.
    """

    engine: Ints
    start_ps: Ints
    duration_ps: Ints
    running: Ints
    kv_pages: Floats


def stretches(record: RunRecord) -> Stretches:
    """All of a run. Pages of a step in which nobody ends before it does are its most. In others
    they are as if each row leased a page where it needs one and gave all back at its end, but for
    those that it adopted; at their most they are what the record says."""
    steps = record.steps
    start, duration, running = steps["start_ps"], steps["duration_ps"], steps["running"]
    who, step = _ended_inside(record)
    gone = np.bincount(step, minlength=len(start))  # rows, per step
    offset = np.cumsum(gone) - gone
    number = np.arange(len(who)) - offset[step]  # of a row among those of its step
    is_last = number == gone[step] - 1
    at = record.rows["end_ps"][who] - start[step]
    first, some = offset[gone > 0], gone > 0

    def until_next(values: NDArray[np.generic], at_end: NDArray[np.generic]) -> NDArray[np.generic]:
        """Per stretch, steps first: a value at its end, from those per row and per step."""
        to = at_end.copy()
        to[some] = values[first]
        return np.concatenate([to, np.where(is_last, at_end[step], np.append(values[1:], 0))])

    # Pages more than at the begin of the step: before each end, at the end of the step.
    tokens = _page_tokens(record)
    rate = steps["passes"] / np.maximum(duration, 1) / np.maximum(tokens, 1)  # of one row, per ps
    pages = _own_pages(record, who, tokens[step])
    waited, given = _before(at, first, gone), _before(pages, first, gone)
    before = rate[step] * (waited + (running[step] - number) * at) - given
    all_at = np.bincount(step, at, minlength=len(start))
    all_pages = np.bincount(step, pages, minlength=len(start))
    at_end = rate * (all_at + (running - gone) * duration) - all_pages
    most = np.maximum(at_end, 0.0)
    np.maximum.at(most, step, before)
    more = np.concatenate([np.zeros(len(start)), before - pages]) + until_next(before, at_end)
    which = np.concatenate([np.arange(len(start)), step])
    peak = steps["kv_pages"].astype(np.float64)
    level = np.clip((peak - most)[which] + more / 2, 0.0, peak[which])

    begin = np.concatenate([np.zeros(len(start), dtype=np.int64), at])
    return Stretches(
        engine=steps["engine"][which],
        start_ps=start[which] + begin,
        duration_ps=np.asarray(until_next(at, duration) - begin, dtype=np.int64),
        running=np.maximum(np.concatenate([running, running[step] - number - 1]), 0),
        kv_pages=np.where((some & (tokens > 0))[which], level, peak[which]),
    )


def _ended_inside(record: RunRecord) -> tuple[Ints, Ints]:
    """Rows that decoded and ended before their step did, and the steps, by step and end. The step
    is the last one of the row's engine that began before the row's end."""
    rows, steps = record.rows, record.steps
    first, end = rows["first_token_ps"], rows["end_ps"]
    who = np.flatnonzero((first >= 0) & (end > first) & (rows["engine"] >= 0))
    num_steps = len(steps["engine"])
    engine = np.concatenate([steps["engine"], rows["engine"][who]])
    time = np.concatenate([steps["start_ps"], end[who]])
    is_step = np.arange(len(engine)) < num_steps
    order = np.lexsort((is_step, time, engine))  # at one time an end comes before a begin
    newest = np.maximum.accumulate(np.where(is_step[order], np.arange(len(order)), -1))
    place = np.flatnonzero(~is_step[order] & (newest >= 0))
    who, step = who[order[place] - num_steps], order[newest[place]]
    finish = steps["start_ps"] + steps["duration_ps"]
    inside = (steps["engine"][step] == rows["engine"][who]) & (end[who] < finish[step])
    who, step = who[inside], step[inside]
    by_step = np.lexsort((end[who], step))
    return who[by_step], step[by_step]


def _page_tokens(record: RunRecord) -> Ints:
    """Tokens of a page of each step's engine; 0: not known."""
    sizes = {int(e["engine"]): int(e.get("page_tokens", 0)) for e in record.engines}
    engines, index = np.unique(record.steps["engine"], return_inverse=True)
    return np.array([sizes[int(e)] for e in engines], dtype=np.int64)[index]


def _own_pages(record: RunRecord, who: Ints, page_tokens: Ints) -> Ints:
    """Pages of the tokens that rows computed; those that they adopted may be leased by others."""
    size = np.maximum(page_tokens, 1)
    tokens = record.rows["prompt_tokens"][who] + record.rows["output_tokens"][who] - 1
    own = -(-tokens // size) - record.rows["adopted_tokens"][who] // size
    return np.asarray(np.maximum(own, 0), dtype=np.int64)


def _before(values: Ints, first: Ints, gone: Ints) -> Floats:
    """Sums over the earlier rows of the same step."""
    sums = np.cumsum(values.astype(np.float64)) - values
    return np.asarray(sums - np.repeat(sums[first], gone[gone > 0]), dtype=np.float64)
