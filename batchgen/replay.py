"""Replay a decision log through a fresh runtime and compare every action. It runs no backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from batchgen.bodies import Scripted
from batchgen.errors import ReplayMismatch, UserError
from batchgen.log import Entry, Header, encode, read_log
from batchgen.policy.presets import build_policy, find_preset
from batchgen.runtime.advisor import Advisor
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """Counts of what was compared; a replay that ends at all ended equal.

    unfinished_rows: rows that had arrived and not ended when the log stops (0 for a whole log).
    """

    events: int
    actions: int
    unfinished_rows: int
    backend: str
    preset: str


def runtime_of(header: Header, advisor: Advisor | None = None) -> Runtime:
    """The runtime that a log's header describes, with nothing arrived.

    Bodies are no part of a log; what they asked for is, so theirs are `Scripted`. Raises UserError
    for an unknown policy, ValueError and its like for numbers that no run can have.
    """
    num_rows = len(header.prompt_tokens)
    for name in ("groups", "predicted", "page_keys"):
        column = getattr(header, name)
        if column is not None and len(column) != num_rows:  # NumPy would spread a single number
            raise ValueError(f"{num_rows} rows, but {name} of {len(column)}")
    table = Table(
        header.prompt_tokens,
        header.budget_tokens,
        group=header.groups,
        produced_tokens=header.produced_tokens,
    )
    if header.predicted is not None:
        table.predicted[:] = np.asarray(header.predicted, dtype=np.int32)
    policy = build_policy(
        find_preset(header.preset), header.overrides, frozenset(header.capabilities)
    )
    keys = header.page_keys
    return Runtime(
        table,
        header.plan,
        policy,
        reference=header.reference,
        page_keys=None if keys is None else keys.__getitem__,
        advisor=advisor,
        bodies=Scripted(table) if header.bodies else None,
    )


def replay(
    lines: Iterable[bytes | str], *, source: str = "decision log", advisor: Advisor | None = None
) -> ReplayReport:
    """Feed the recorded events to a fresh runtime; its actions must be the recorded ones, byte by
    byte.

    Raises ReplayMismatch that names the first event (by number, from 1) whose actions differ or
    that was altered, and UserError when the lines are no full decision log.
    """
    runtime: Runtime | None = None
    header: Header | None = None
    events = actions = 0
    for item in read_log(lines, source):
        if isinstance(item, Header):
            header = item
            if not header.full:
                raise UserError(
                    f"{source} holds steps only", remedy="make the run again with --log full"
                )
            continue
        assert header is not None
        if runtime is None:  # not before: the digest of the first event vouches for the header
            runtime = _made(header, advisor, source)
        events += 1
        actions += len(item.actions)
        _compare(runtime, item, events, source)
    if header is None:
        raise UserError(f"{source} is empty", remedy="give a decision log")
    if runtime is None:
        raise UserError(
            f"{source} holds no event, only a header", remedy="make the run again with --log full"
        )
    return ReplayReport(
        events=events,
        actions=actions,
        unfinished_rows=runtime.unfinished,
        backend=header.backend,
        preset=header.preset,
    )


def _made(header: Header, advisor: Advisor | None, source: str) -> Runtime:
    """The runtime of a header, whatever is in it. Raises UserError."""
    try:
        return runtime_of(header, advisor)
    except UserError:
        raise
    except Exception as error:  # anything may be in a file
        raise UserError(
            f"{source}:1: the header describes no run ({type(error).__name__}: {error})",
            remedy="give the decisions.jsonl.gz of a run made with --log full",
        ) from error


def _compare(runtime: Runtime, entry: Entry, number: int, source: str) -> None:
    what = f"{source}: event {number} ({type(entry.event).__name__} at {entry.t} ps)"
    script = entry.said or []
    if isinstance(runtime.bodies, Scripted):
        runtime.bodies.hear(script)
        runtime.bodies.said = []
    try:
        answer = runtime.on(entry.event, entry.t)
        same = encode(answer) == encode(entry.actions)
    except Exception as error:
        # Names of rows, engines or parts that the header's runtime does not have; sizes that make
        # no sense. Whatever it is, the run of the log did not end in it.
        why = f"{type(error).__name__}: {error}"
        raise ReplayMismatch(f"{what} is impossible here ({why})") from error
    if same:
        if runtime.bodies is not None and runtime.bodies.said != script:
            raise ReplayMismatch(f"{what}: no body can have asked for what the log says then")
        return
    for index, (got, recorded) in enumerate(zip(answer, entry.actions, strict=False)):
        if encode(got) != encode(recorded):
            raise ReplayMismatch(
                f"{what}: action {index + 1} was {encode(recorded).decode()}, "
                f"the replay says {encode(got).decode()}"
            )
    raise ReplayMismatch(
        f"{what}: {len(entry.actions)} actions were recorded, the replay gives {len(answer)}"
    )
