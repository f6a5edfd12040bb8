"""Rows give pages back: for the growth of others, for orders from outside, for another home.

The memory part names the way and the victim; the books are here. A row that leaves the running set
is in doubt for `lag` passes, because the outcome of its last pass is not known: until then it does
not wait, is not copied and is not taken by others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.coroutine import Outcome
from batchgen.memory.pool import GrowthHistogram, pages_for
from batchgen.runtime.advisor import HOME
from batchgen.runtime.engine.copies import gave_host
from batchgen.runtime.engine.landing import resolve
from batchgen.runtime.engine.lane import cancel_waiting, enqueue
from batchgen.runtime.engine.streams import drop_streams, end_stream
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine, Order
    from batchgen.runtime.engine.rank import Rank

DOUBT, HOST = int(Status.DOUBT), int(Status.HOST)

# -- pages for growth -----------------------------------------------------------------------------


def make_room(engine: EngineMachine, rank: Rank) -> bool:
    """Pages for the passes until the next boundary; True when somebody gave way or stalled.

    Rows on their way to the host free pages only when their copy is done, so whoever suspends
    looks further ahead than the next boundary and counts those pages as free.
    """
    growth, k, policy = rank.growth, rank.k, engine.policy
    each = engine.turn_every
    ahead = each * policy.boundaries_ahead if policy.suspends and engine.phases else each
    free = rank.size - rank.used
    if growth.growth(k, each) <= free and (
        ahead == each or growth.growth(k, ahead) <= free + rank.outbound_pages
    ):
        return False
    if rank.dead:
        release_dead(engine, rank)
        return make_room(engine, rank)
    if engine.sleeping:
        _forget_sleepers(engine, rank)
    if policy.recomputes:
        _recompute_until(engine, rank, each)
        return True
    if policy.suspends:
        _suspend_until(engine, rank, ahead)
    _stall_until(engine, rank, each)
    return True


def _forget_sleepers(engine: EngineMachine, rank: Rank) -> None:
    """Rows that wait for a timer give way before any that works; they sleep on without KV."""
    table = engine.table
    engine.once = True  # which may free more than was needed
    for row in [row for row in rank.held if table.v_status[row] == Status.SLEEPING]:
        del rank.held[row]
        engine.sleeping -= 1
        engine.up.lost_asleep(row)
        forget_kv(engine, rank, row)


def _recompute_until(engine: EngineMachine, rank: Rank, passes: int) -> None:
    growth, k = rank.growth, rank.k
    while growth.growth(k, passes) > rank.size - rank.used:
        if rank.prefilling:
            recompute(engine, rank, next(reversed(rank.prefilling)))
        elif len(rank.running) > 1:
            recompute(engine, rank, _victim(engine, rank))
        elif growth.growth(k, 1) > rank.size - rank.used and rank.running:
            row = next(iter(rank.running))
            if rank.held or rank.inbound:
                stall(engine, rank, row)
            else:
                outgrew(engine, rank, row)
            return
        else:
            return  # alone: it goes on as long as pages last


def _suspend_until(engine: EngineMachine, rank: Rank, passes: int) -> None:
    growth, k = rank.growth, rank.k
    victims: list[int] | None = None
    while (
        growth.growth(k, passes) > rank.size - rank.used + rank.outbound_pages
        and len(rank.running) > 1
    ):
        if victims is None:
            victims = _victims(engine, rank)
        row = victims.pop()
        if not suspend(engine, rank, row):
            recompute(engine, rank, row)


def _stall_until(engine: EngineMachine, rank: Rank, passes: int) -> None:
    """Rows pause, newest first, until the growth of the others fits; at least one goes on, as long
    as it has pages for one pass."""
    growth, k = rank.growth, rank.k
    while growth.growth(k, passes) > rank.size - rank.used and len(rank.running) > 1:
        stall(engine, rank, next(reversed(rank.running)))
    if rank.running and growth.growth(k, 1) > rank.size - rank.used:
        stall(engine, rank, next(iter(rank.running)))


def _victim(engine: EngineMachine, rank: Rank) -> int:
    if engine.policy.newest:
        return next(reversed(rank.running))
    table, key = engine.table, engine.policy.rank_victim
    return max(rank.running, key=lambda row: (key(table, row), row))


def _victims(engine: EngineMachine, rank: Rank) -> list[int]:
    """All that run, the first victim last."""
    if engine.policy.newest:
        return list(rank.running)
    table, key = engine.table, engine.policy.rank_victim
    return sorted(rank.running, key=lambda row: (key(table, row), row))


# -- ways to give ---------------------------------------------------------------------------------


def recompute(engine: EngineMachine, rank: Rank, row: int) -> None:
    """The row loses its pages and waits, first in its lane, to be prefilled again."""
    table, up = engine.table, engine.up
    ran = engine.withdraw(rank, row)
    table.v_recomputed[row] += table.v_computed[row]
    forget_kv(engine, rank, row)
    table.v_preemptions[row] += 1
    if engine.lag and ran:
        table.v_status[row] = DOUBT
        engine.doubt.append((row, "recompute"))
    else:
        enqueue(engine, row, rank, front=True)
        up.queue_grew(engine)
    if up.bodies is not None:
        up.tell_body(engine, row, Outcome.LOST)


def forget_kv(engine: EngineMachine, rank: Rank, row: int) -> None:
    """Pages and checkpoint of a row in no set are gone."""
    table, out = engine.table, engine.up.out
    table.v_computed[row] = 0
    rank.release(row)
    out.append(act.Release([row], engine.id, "hbm"))
    if table.v_host_pages[row]:
        end_stream(engine, row)
        out.append(act.Release([row], engine.id, "host"))
    table.v_host_valid[row] = 0


def suspend(engine: EngineMachine, rank: Rank, row: int) -> bool:
    """The row goes to the host; False when the host share has no room even without streams."""
    table = engine.table
    pages = pages_for(table.v_offset[row] + rank.k, engine.page_tokens)
    if engine.host_used + pages > engine.host_size:
        return False
    streamed = engine.streaming
    engine.leave(rank, row)
    if streamed:
        engine.stream_used -= table.v_host_pages[row]
    table.v_host_pages[row] = pages
    engine.host_used += pages
    if engine.host_used + engine.stream_used > engine.host_size:
        drop_streams(engine)
    rank.outbound_pages += table.v_pages[row]
    engine.num_outbound += 1
    table.v_suspensions[row] += 1
    table.v_status[row] = DOUBT
    engine.doubt.append((row, "suspend"))
    if engine.up.bodies is not None:
        engine.up.tell_body(engine, row, Outcome.SUSPENDED)
    return True


def spill(engine: EngineMachine, rank: Rank, row: int) -> None:
    """A row whose KV is whole on the host already gives its pages back at once."""
    table = engine.table
    engine.leave(rank, row)
    pages = table.v_host_pages[row]
    engine.stream_used -= pages
    engine.host_used += pages
    rank.release(row)
    table.v_suspensions[row] += 1
    table.v_status[row] = HOST
    engine.ready.append(row)
    engine.up.out.append(act.Release([row], engine.id, "hbm"))
    if engine.up.bodies is not None:
        engine.up.tell_body(engine, row, Outcome.SUSPENDED)


def stall(engine: EngineMachine, rank: Rank, row: int) -> None:
    """The row pauses and keeps its pages."""
    engine.leave(rank, row)
    rank.held[row] = None
    engine.table.v_status[row] = Status.STALLED


def outgrew(engine: EngineMachine, rank: Rank, row: int) -> None:
    """The row has the rank to itself and fills it: it fails by name, unless it fits at home."""
    have = pages_for(engine.table.v_offset[row] + rank.k, engine.page_tokens)
    if engine.layout != HOME and have < engine.roomiest:
        stall(engine, rank, row)
        engine.up.undo(engine)
        return
    why = f"needs {have + 1} pages of {engine.page_tokens} tokens, its rank has {rank.size}"
    end(engine, rank, row, ("fail", "capacity", why))


def end(engine: EngineMachine, rank: Rank, row: int, verdict: Order) -> None:
    """A resident row ends, without success or with what it has."""
    ran = engine.withdraw(rank, row)
    engine.once = engine.freed = True
    rank.release(row)
    streamed = engine.table.v_host_pages[row] > 0
    end_stream(engine, row)
    what, code, why = verdict
    if engine.lag and ran:  # its pages may be taken before its end is told
        engine.up.out.append(act.Release([row], engine.id, "hbm"))
        if streamed:
            engine.up.out.append(act.Release([row], engine.id, "host"))
        engine.table.v_status[row] = DOUBT
        engine.verdicts[row] = verdict
        engine.doubt.append((row, what))
    else:
        engine.up.end_early(engine, row, what, code, why)


# -- stalled rows go on ---------------------------------------------------------------------------


def go_on(engine: EngineMachine, rank: Rank) -> None:
    """Stalled rows rejoin when their growth fits; when nothing else moves, somebody must lose."""
    table, each = engine.table, engine.turn_every
    for row in [row for row in rank.held if table.v_status[row] == Status.STALLED]:
        if engine.sleeping and _growth_with(engine, rank, row, each) > rank.size - rank.used:
            _forget_sleepers(engine, rank)
        if _growth_with(engine, rank, row, each) > rank.size - rank.used:
            break
        del rank.held[row]
        engine.enter(rank, row)
    if not rank.held or rank.running or rank.prefilling or _comes(engine, rank):
        return
    mine = [row for row in rank.held if table.v_status[row] == Status.STALLED]
    while mine:
        row = mine[0]
        if _growth_with(engine, rank, row, 1) <= rank.size - rank.used:
            del rank.held[row]
            engine.enter(rank, row)
            return
        if rank.dead:
            release_dead(engine, rank)
            continue
        grows = next((one for one in rank.held if table.v_status[one] == Status.EXTENDING), -1)
        if len(mine) > 1:
            recompute(engine, rank, mine.pop())
        elif grows >= 0:  # it would ask for more pages next, and holds those that are missing
            recompute(engine, rank, grows)
        elif engine.layout != HOME and table.v_pages[row] < engine.roomiest:
            engine.up.undo(engine)
            return
        else:
            have = table.v_pages[row]
            why = f"needs {have + 1} pages of {engine.page_tokens} tokens, its rank has {rank.size}"
            end(engine, rank, row, ("fail", "capacity", why))
            return


def _comes(engine: EngineMachine, rank: Rank) -> bool:
    """Whether something is on its way that will free pages of the rank, or bring rows to it."""
    if engine.num_outbound or engine.num_inbound or engine.doubt:
        return True
    table = engine.table
    quiet = (Status.STALLED, Status.EXTENDING)
    return any(table.v_status[row] not in quiet for row in rank.held)


def _growth_with(engine: EngineMachine, rank: Rank, row: int, passes: int) -> int:
    """Pages of the next passes, were the row to run too."""
    table, k = engine.table, rank.k
    pages = rank.growth.growth(k, passes) if rank.growth.num_rows else 0
    if table.v_reserved[row]:
        return pages
    alone = GrowthHistogram.pages_of_one(table.v_computed[row], passes, rank.page_tokens)
    return pages + alone


# -- orders from outside --------------------------------------------------------------------------


def carry_out_orders(engine: EngineMachine) -> None:
    """Rows that are to end or to sleep: now, unless a copy or doubt holds them."""
    table = engine.table
    for row, verdict in list(engine.orders.items()):
        status = table.v_status[row]
        if status >= Status.DONE:
            del engine.orders[row]
            continue
        rank = engine.ranks[table.v_rank[row]]
        what, code, why = verdict
        if what == "sleep":  # it does when it decodes; asked again meanwhile, it sleeps already
            if status == Status.DECODE:
                _lie_down(engine, rank, row)
            elif status != Status.SLEEPING:
                continue
        elif status in (Status.DECODE, Status.PREFILL, Status.STALLED, Status.EXTENDING):
            end(engine, rank, row, verdict)
        elif status == Status.SLEEPING:
            if row in rank.held:
                end(engine, rank, row, verdict)
            else:
                engine.up.end_early(engine, row, what, code, why)
        elif status == Status.FROZEN and engine.up.transfers.call_back(row):
            end(engine, rank, row, verdict)
        elif status == HOST and engine.up.transfers.call_back(row, engine):
            gave_host(engine, [row])
            engine.freed = True
            engine.up.end_early(engine, row, what, code, why)
        elif status == Status.WAITING:
            cancel_waiting(engine, row)
            engine.freed = True
            engine.up.end_early(engine, row, what, code, why)
        else:
            continue  # in a copy or in doubt: at the next decision
        engine.orders.pop(row, None)
    engine.once = True


def _lie_down(engine: EngineMachine, rank: Rank, row: int) -> None:
    engine.leave(rank, row)
    rank.held[row] = None
    engine.table.v_status[row] = DOUBT
    engine.doubt.append((row, "sleep"))
    engine.freed = True  # its pages are there for rows that stand still


def freeze(engine: EngineMachine) -> None:
    """Running rows look for another home, those first that have run longest; where a device will
    go, half a prompt is begun again elsewhere."""
    engine.freezing = False
    part, of = (1, 1) if engine.draining else engine.freezing_share
    seen = gone = 0  # rounded up once, not by each rank
    for rank in engine.ranks:
        for row in list(rank.prefilling) if engine.draining else ():
            recompute(engine, rank, row)
        seen += len(rank.running)
        leaving = -(-seen * part // of) - gone
        gone += leaving
        for row in list(rank.running)[:leaving]:
            engine.leave(rank, row)
            rank.held[row] = None
            engine.table.v_status[row] = DOUBT
            engine.doubt.append((row, "freeze"))


def release_dead(engine: EngineMachine, rank: Rank) -> None:
    """Ended rows of a static batch go, with their pages."""
    table, k = engine.table, rank.k
    for row in rank.dead:
        if not table.v_reserved[row]:
            offset = table.v_offset[row]
            rank.growth.remove(offset)
            table.v_pages[row] = pages_for(offset + k, rank.page_tokens)
            if rank.lane_growth:
                rank.lane_growth[table.v_lane[row]].remove(offset)
        rank.release(row)
        engine.left[row] = None
    rank.dead = {}


def pay_debt(engine: EngineMachine, rank: Rank) -> None:
    """Pages that the backend wants back leave the pool as they come free."""
    paid = min(rank.debt, rank.size - rank.used)
    rank.debt -= paid
    rank.size -= paid
    if paid:
        waiting = [row for lane in rank.lanes for row in lane.drain()]
        rank.waiting = 0
        for row in waiting:  # some may never fit any more
            enqueue(engine, row, rank)


def settle_doubt(engine: EngineMachine, out: list[act.Action]) -> None:
    """Rows whose last pass is known already: all where nothing is in flight, else those that never
    ran."""
    doubt = engine.doubt
    if not engine.flying:
        engine.doubt = []
        resolve(engine, doubt, out, frozenset())
        return
    left = engine.left_since
    known = [item for item in doubt if item[1] != "hand" and item[0] not in left]
    if known:
        engine.doubt = [item for item in doubt if item not in known]
        resolve(engine, known, out, frozenset())
