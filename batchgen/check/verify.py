"""What must hold of finished runs: every row has ended by name, two runs are the same run.

Answers are texts that say what is wrong, empty when nothing is.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from batchgen.check.run import Outcome
from batchgen.memory.pool import pages_for
from batchgen.sequence import Status

CODES = ("capacity", "cancelled", "bad", "no_device")
"""How a row may fail in a case: two of them are troubles of the case itself."""


def loose_ends(outcome: Outcome) -> str:
    """Rows that have not ended as they should, and what is left of them anywhere."""
    table = outcome.table
    for index, row in enumerate(outcome.case.rows):
        status, reason = table.v_status[index], outcome.reasons.get(index, "")
        if status == Status.DONE:
            if table.v_produced[index] != row.total or reason not in ("stop", "length"):
                return f"ended ({reason}) without its {row.total} tokens: {table.story(index)}"
        elif status != Status.FAILED or reason not in CODES:
            return f"did not end ({reason or 'no reason'}): {table.story(index)}"
        elif bool(outcome.walker.why[index]) != (reason == "capacity"):
            return f"failed ({reason}) with the text {outcome.walker.why[index]!r}"
    if outcome.runtime.unfinished:
        return f"{outcome.runtime.unfinished} rows are still counted as unfinished"
    for engine in outcome.runtime.cluster.engines:
        if engine.host_used or engine.stream_used:
            return f"engine {engine.id} still leases {engine.host_used} pages of its host"
        for rank in engine.ranks:
            if rank.used or rank.waiting:
                return f"rank {rank.index} of engine {engine.id} still leases {rank.used} pages"
    return ""


def needless_failure(outcome: Outcome) -> str:
    """A row that fits the pools with its whole budget, and failed for want of pages."""
    case = outcome.case
    if any(kind == "pool_short" for kind, *_ in case.troubles):
        return ""  # the pools of the plan are not those of the run
    for index, row in enumerate(case.rows):
        more = sum(tokens + output for tokens, output, _ in row.stages)
        pages = pages_for(row.prompt + row.budget + more + 1, case.page)
        if outcome.reasons.get(index) == "capacity" and pages < case.hbm_pages:
            return (
                f"row {index} needs {pages} of {case.hbm_pages} pages at most and failed: "
                f"{outcome.walker.why[index]}"
            )
    return ""


def difference(one: Outcome, other: Outcome) -> str:
    """What differs first between two runs of a case: passes, times, copies, columns or reasons."""
    wanted, got = one.everything(), other.everything()
    for engine, pair in enumerate(zip(wanted["passes"], got["passes"], strict=True)):
        for number, (left, right) in enumerate(zip_longest(*pair)):
            if left != right:
                return f"pass {number} of engine {engine} is {_pass(left)} and {_pass(right)}"
    for name, value in wanted.items():
        if got[name] != value:
            return _where(name, value, got[name])
    return ""


def _pass(one: tuple[Any, ...] | None) -> str:
    """A pass in words."""
    if one is None:
        return "not there"
    _, decodes, chunks, finished = one
    prompts = [f"{row}[{start}:{start + size}]" for row, start, size, _ in chunks]
    words = [f"decode {decodes}"] * bool(decodes) + [f"prompts {prompts}"] * bool(prompts)
    return _short("(" + ", ".join([*words, *[f"ends {finished}"] * bool(finished)]) + ")")


def _where(name: str, one: Any, other: Any) -> str:
    """The first place at which two like structures differ."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        for index, pair in enumerate(zip(one, other, strict=False)):
            if pair[0] != pair[1]:
                return _where(f"{name}[{index}]", *pair)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key, value in one.items():
            if other[key] != value:
                return _where(f"{name}.{key}", value, other[key])
    return f"{name}: {_short(repr(one))} and {_short(repr(other))}"


def _short(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:86]} ..."
