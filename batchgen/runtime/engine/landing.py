"""The end of a step: what its passes did to the engine's books. It decides nothing.

With lag 1 a report knows the outcomes of all passes but the last, which is still in flight; rows
that left in the decision before it are in doubt until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.coroutine import Outcome
from batchgen.errors import IllegalTransition
from batchgen.memory.pool import pages_for
from batchgen.runtime.engine.copies import gave_host
from batchgen.runtime.engine.lane import enqueue
from batchgen.runtime.engine.peak import most_pages
from batchgen.runtime.engine.streams import end_stream
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen import events as ev
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank

DECODE = int(Status.DECODE)
DONE = int(Status.DONE)

Doubt = list[tuple[int, str]]
_NOBODY: Doubt = []
_NONE: list[int] = []


def landed(engine: EngineMachine, event: ev.Landed, out: list[act.Action]) -> None:
    """The books of a step that is over (or, with lag, whose last pass runs)."""
    step = engine.launched
    if step is None or event.epoch != engine.epoch:
        return  # of an epoch that is over
    passes = event.end - step.q0
    if not 0 < passes <= step.n:
        raise IllegalTransition(f"step {engine.id}:{step.q0} ran {passes} of {step.n} passes")
    doubt: Doubt = _NOBODY
    if engine.doubt:
        doubt, engine.doubt = engine.doubt, []
    lag, ranks = engine.lag, engine.ranks
    told: list[int] = _NONE
    if engine.prompts_told:
        told, engine.prompts_told = engine.prompts_told, []
    peak = -1  # it is at the end
    if step.decode:
        if event.finished and passes > 1 and step.until == "n" and engine.up.bodies is None:
            peak = most_pages(engine, passes, event.finished)
        for rank in ranks:
            if not rank.paused:
                rank.advance(passes)
        if engine.streaming:
            engine.stream_used += engine.stream_growth.growth(engine.k, passes)
        engine.k += passes
    engine.q = event.end
    engine.launched, engine.previous = None, step
    if engine.left_since:
        engine.left_since = {}
    if not lag:
        engine.flying = False
    if peak < 0:
        peak = ranks[0].used if len(ranks) == 1 else engine.hbm_used()
    engine.peak_pages = max(peak, engine.begin_pages)
    if engine.probe is not None:
        engine.up.pace.report(engine, event.end - 1 - lag, event.duration_ps)
    if step.chunks:
        doubt = _chunks_ran(engine, step.chunks, passes, doubt)
    if not lag and engine.prompts_told:
        told, engine.prompts_told = engine.prompts_told, []
    if told:
        _prompts_done(engine, told)
    if event.finished or doubt:
        _outcomes(engine, event.finished, doubt, out)


def drained(engine: EngineMachine, event: ev.Drained, out: list[act.Action]) -> None:
    """With lag: the last pass ended and nothing was launched behind it."""
    if event.epoch != engine.epoch:
        return
    engine.flying = False
    engine.left_since = {}
    if engine.probe is not None:
        engine.up.pace.report(engine, engine.q - 1, event.duration_ps)
    doubt, engine.doubt = engine.doubt, []
    told, engine.prompts_told = engine.prompts_told, []
    _prompts_done(engine, told)
    _outcomes(engine, event.finished, doubt, out)


def _prompts_done(engine: EngineMachine, rows: list[int]) -> None:
    """The last chunks of rows have run: their KV is whole on the host if it streams."""
    table = engine.table
    for row in rows:
        if engine.streaming and table.v_status[row] == DECODE:
            table.v_host_valid[row] = max(table.v_host_valid[row], table.v_computed[row])
        if engine.up.bodies is not None:
            engine.up.tell_body(engine, row, Outcome.PROMPT_DONE)


def _chunks_ran(
    engine: EngineMachine, chunks: list[tuple[int, int, int, bool]], passes: int, doubt: Doubt
) -> Doubt:
    """Prompts are longer by the step's chunks; complete ones decode, or are handed over."""
    table, ranks = engine.table, engine.ranks
    computed, produced = table.v_computed, table.v_produced
    alone = ranks[0] if len(ranks) == 1 else None
    for row, start, size, last in chunks:
        rank = alone or ranks[table.v_rank[row]]
        if not last:
            computed[row] = start + size * passes
            rank.prompt_left -= size * passes
            if rank.prefix is not None and passes > 1:
                publish(engine, rank, row, start + size * passes, engine.up.out)
            continue
        del rank.prefilling[row]
        rank.prompt_left -= size
        computed[row] = start + size
        produced[row] += 1
        if engine.streaming or engine.up.bodies is not None:
            engine.prompts_told.append(row)
        if engine.role == "prefill":
            table.v_status[row] = Status.DOUBT
            rank.held[row] = None
            if engine.lag:
                engine.doubt.append((row, "hand"))
            else:
                doubt = [*doubt, (row, "hand")]
        else:
            engine.join(rank, row)
    return doubt


def publish(
    engine: EngineMachine, rank: Rank, row: int, tokens: int, out: list[act.Action]
) -> None:
    """The row's tokens up to `tokens` are scheduled: their full prompt pages are known from now."""
    first, count = rank.publish(row, tokens)
    if count:
        out.append(act.Publish(row, engine.id, first, count))


def _outcomes(
    engine: EngineMachine,
    finished: list[tuple[int, int, str]],
    doubt: Doubt,
    out: list[act.Action],
) -> None:
    gone: set[int] = set()
    if finished:
        up = engine.up
        if up.bodies is not None:
            finished = _bodies_end(engine, finished, doubt)
        doubtful = {row for row, _ in doubt} if doubt else ()
        for row, produced, reason in finished:
            _finish(engine, row, produced)
            if row in doubtful:
                gone.add(row)
            up.ended(engine, row, reason)
    if doubt:
        resolve(engine, doubt, out, gone)


def _finish(engine: EngineMachine, row: int, produced: int) -> None:
    """The row ended: its pages come free, unless it stays as a dead row."""
    table = engine.table
    rank = engine.ranks[table.v_rank[row]]
    status = table.v_status[row]
    if status == DECODE:
        if engine.policy.static:
            bury(engine, rank, row)
        elif rank.lane_used or rank.prefix is not None or table.v_reserved[row]:
            engine.unjoin(rank, row)
            rank.release(row)
            end_stream(engine, row)
        else:  # the common case, in place
            offset = table.v_offset[row]
            del rank.running[row]
            rank.offsets -= offset
            growth = rank.growth
            crosses = -offset % growth.page_tokens
            growth.counts[crosses] -= 1
            growth.num_rows -= 1
            pages = -(-(offset + rank.k) // growth.page_tokens)
            rank.used -= pages
            table.v_pages[row] = 0
            if engine.streaming:
                if not rank.paused:
                    engine.stream_growth.remove(offset + rank.k - engine.k)
                engine.stream_used -= pages
                table.v_host_pages[row] = table.v_host_valid[row] = 0
    elif status in (Status.STALLED, Status.EXTENDING):
        engine.withdraw(rank, row)
        rank.release(row)
        end_stream(engine, row)
    elif status != Status.DOUBT:
        raise IllegalTransition(f"{table.story(row)} finished but was not running")
    table.v_produced[row] = produced
    table.v_computed[row] = table.v_prompt[row] + produced - 1
    table.v_status[row] = DONE


def bury(engine: EngineMachine, rank: Rank, row: int) -> None:
    """An ended row of a static batch keeps its place and goes on growing; its stream ends."""
    table = engine.table
    del rank.running[row]
    rank.offsets -= table.v_offset[row]
    rank.dead[row] = None
    if engine.streaming:
        offset = table.v_offset[row]
        if not rank.paused:
            engine.stream_growth.remove(offset + rank.k - engine.k)
        table.v_host_pages[row] = pages_for(offset + rank.k, rank.page_tokens)
        end_stream(engine, row)


def _bodies_end(
    engine: EngineMachine, finished: list[tuple[int, int, str]], doubt: Doubt
) -> list[tuple[int, int, str]]:
    """Ask the bodies of rows whose generation ended; returns those that have no more to do."""
    table, over = engine.table, []
    for row, produced, reason in finished:
        rank = engine.ranks[table.v_rank[row]]
        was = table.v_status[row]
        if was == DECODE:
            engine.unjoin(rank, row)
            rank.held[row] = None
            if engine.policy.static:  # the backend would keep it as a dead row
                engine.left[row] = None
            rank.trim(row, table.v_prompt[row] + produced - 1)
            table.v_produced[row] = produced
            table.v_status[row] = Status.STALLED
        # Rows in doubt left with what this pass gave them: their columns are right already.
        goes_on = engine.up.stage_ended(engine, row, reason, in_doubt=was == Status.DOUBT)
        if goes_on == "goes on" and (row, "sleep") in doubt:  # it sleeps no more
            doubt.remove((row, "sleep"))
            engine.goes_on(row)
        elif goes_on == "sleeps" and was == Status.DOUBT:  # wherever it was to go, it sleeps
            entry = next(item for item in doubt if item[0] == row)
            doubt.remove(entry)
            if entry[1] not in ("recompute", "fail", "finish"):  # those have let go of it already
                pools = ("hbm", "host") if table.v_host_pages[row] else ("hbm",)
                engine.up.out.extend(act.Release([row], engine.id, pool) for pool in pools)
            _ended_in_doubt(engine, rank, row, entry[1])
            engine.up.lost_asleep(row)
            table.v_computed[row] = 0
            table.v_status[row] = Status.SLEEPING
        if not goes_on:
            if was == DECODE and engine.policy.static:
                _rejoin(engine, rank, row)
            over.append((row, produced, reason))
    return over


def _rejoin(engine: EngineMachine, rank: Rank, row: int) -> None:
    """The row has no more to do after all: a dead row of its static batch, with all it had."""
    table = engine.table
    computed = table.v_offset[row] + rank.k
    if not table.v_reserved[row]:
        rank.lease(row, pages_for(computed, rank.page_tokens) - table.v_pages[row])
    table.v_computed[row] = computed
    del rank.held[row], engine.left[row]
    engine.join(rank, row)


def resolve(
    engine: EngineMachine, doubt: Doubt, out: list[act.Action], gone: set[int] | frozenset[int]
) -> None:
    """The outcome of rows that left is known: they go where they were meant to go."""
    table, up = engine.table, engine.up
    suspended: list[int] = []
    homeless: list[int] = []
    for row, what in doubt:
        rank = engine.ranks[table.v_rank[row]]
        if row in gone:
            _ended_in_doubt(engine, rank, row, what)
        elif what == "fail" or what == "finish":
            _, code, why = engine.verdicts.pop(row)
            up.end_early(engine, row, what, code, why)
        elif what == "recompute":
            enqueue(engine, row, rank, front=True)
            up.queue_grew(engine)
        elif what == "suspend":
            table.v_status[row] = Status.MOVING
            suspended.append(row)
        elif what == "sleep":
            engine.fell_asleep(row)
            up.sleep(engine, row)
        else:  # hand, freeze
            table.v_status[row] = Status.FROZEN
            homeless.append(row)
    if suspended:
        up.transfers.suspend(engine, suspended, out)
    if homeless:
        up.transfers.look_for_homes(engine, homeless)


def _ended_in_doubt(engine: EngineMachine, rank: Rank, row: int, what: str) -> None:
    """It had ended in the very pass after which it left."""
    if what == "suspend":
        table = engine.table
        rank.outbound_pages -= table.v_pages[row]
        engine.num_outbound -= 1
        gave_host(engine, [row])
        rank.release(row)
    elif what in ("hand", "freeze", "sleep"):
        del rank.held[row]
        rank.release(row)
        end_stream(engine, row)
    else:  # recompute, fail, finish: its pages are free already
        engine.verdicts.pop(row, None)
        if what == "recompute":  # nobody does, unless it wakes and goes on
            table = engine.table
            table.v_computed[row] = table.known_tokens(row) - 1
            table.v_recomputed[row] -= table.v_computed[row]
