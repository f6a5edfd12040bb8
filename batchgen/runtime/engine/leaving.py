"""What an engine keeps when its device is lost, and how its rows move into another layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.coroutine import Outcome
from batchgen.memory.pool import pages_for
from batchgen.runtime.advisor import HOME, Offer
from batchgen.runtime.engine.copies import gave_host
from batchgen.runtime.engine.giving import recompute
from batchgen.runtime.engine.lane import enqueue
from batchgen.runtime.engine.streams import end_stream
from batchgen.sequence import NO_ENGINE, Status

if TYPE_CHECKING:
    from batchgen import events as ev
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank
    from batchgen.step import Step


# -- a lost device --------------------------------------------------------------------------------


@dataclass(slots=True)
class Remains:
    """Rows of a lost engine: `homeless` have no KV left, `hosted` are on its host, `waited` were in
    its lanes."""

    homeless: list[int] = field(default_factory=list)
    hosted: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)


def lost(engine: EngineMachine, event: ev.DeviceLost) -> Remains:
    """The HBM of the engine is gone; its share of the host is not. The books of its passes end at
    `event.end`; with lag that may be one pass before the newest step, whose row changes are then
    undone."""
    _ended_before(engine, event)
    _rewind(engine, event.end)
    remains = Remains()
    table = engine.table
    seen: set[int] = set()
    for row in _with_kv(engine):
        if row in seen or table.v_status[row] >= Status.DONE:
            continue
        seen.add(row)
        if row in engine.verdicts:
            what, code, why = engine.verdicts.pop(row)
            engine.up.end_early(engine, row, what, code, why)
        elif table.v_status[row] == Status.SLEEPING:
            engine.up.lost_asleep(row)
            table.v_computed[row] = 0
            _forget(engine, row)
            table.v_status[row] = Status.SLEEPING
        elif engine.policy.moves and table.v_host_valid[row] > 0:
            _stay_on_host(engine, row)
            remains.hosted.append(row)
        else:
            _forget(engine, row)
            remains.homeless.append(row)
    for row in engine.ready:
        if engine.policy.moves:
            remains.hosted.append(row)
        else:
            gave_host(engine, [row])
            _forget(engine, row)
            remains.homeless.append(row)
    for rank in engine.ranks:
        remains.waited += [row for lane in rank.lanes for row in lane.drain()]
    for row in remains.waited:
        table.v_engine[row] = NO_ENGINE
        table.v_status[row] = Status.INIT
    # Claims of rows that stay on the host, or whose host copy is on its way elsewhere.
    claims = [*remains.hosted, *engine.up.transfers.leaving_host(engine)]
    _reset(engine, event.end)
    engine.host_used = sum(table.v_host_pages[row] for row in claims)
    engine.ready.extend(remains.hosted)
    return remains


def _ended_before(engine: EngineMachine, event: ev.DeviceLost) -> None:
    """Rows that ended in passes before the loss have ended."""
    table, up = engine.table, engine.up
    for row, produced, reason in event.finished:
        status = table.v_status[row]
        if status >= Status.DONE or status in (Status.INIT, Status.WAITING):
            continue
        table.v_produced[row] = produced
        engine.verdicts.pop(row, None)
        if up.bodies is not None and up.stage_ended(engine, row, reason, in_doubt=False):
            continue
        table.v_computed[row] = table.v_prompt[row] + produced - 1
        table.v_host_pages[row] = table.v_host_valid[row] = 0
        table.v_status[row] = Status.DONE
        up.ended(engine, row, reason)


def _rewind(engine: EngineMachine, end: int) -> None:
    """Columns of decoding rows become real, as of the passes that ended."""
    table, step = engine.table, engine.launched
    q0 = step.q0 if step is not None else engine.q
    previous: Step | None = engine.previous
    fresh: dict[int, int] = {}  # rows whose prompt was completed in the pass undone -> its start
    joined: set[int] = set()
    left: set[int] = set()
    back = [0] * len(engine.ranks)  # passes that clocks are ahead of
    if end < q0:  # the pass before the newest decision never ended
        assert previous is not None
        engine.k -= previous.decode
        if previous.decode:
            back = [int(rank.index not in previous.paused) for rank in engine.ranks]
        fresh = {row: start for row, start, _, last in previous.chunks if last}
        joined = set(step.joined) if step is not None else set(engine.joined)
        left = set(engine.left_since)
        for row in fresh.keys() | left:
            known = table.v_status[row] in (Status.DECODE, Status.EXTENDING) or table.ended(row)
            if table.v_engine[row] == engine.id and not known:
                table.v_produced[row] -= 1 if row in fresh else back[table.v_rank[row]]
        for row, _, size, last in previous.chunks:
            if not last and table.v_status[row] == Status.PREFILL:
                table.v_computed[row] -= size
    elif step is not None:
        if step.decode:
            engine.k += end - q0
            back = [0 if rank.index in step.paused else q0 - end for rank in engine.ranks]
        for row, start, size, _ in step.chunks:
            table.v_computed[row] = start + size * (end - q0)
    for rank in engine.ranks:
        k = rank.k - back[rank.index]
        for row in rank.running:
            if table.v_status[row] != Status.DECODE:
                continue
            if row in fresh:
                table.v_produced[row] -= 1
                table.v_computed[row] = fresh[row]
                table.v_host_valid[row] = min(table.v_host_valid[row], fresh[row])
                continue
            ran = row not in joined or row in left
            computed = table.v_offset[row] + (k if ran else rank.k)
            if ran:
                table.v_produced[row] = computed - table.v_prompt[row] + 1
            table.v_computed[row] = max(computed, 0)
            if engine.streaming:
                closed = computed - computed % engine.page_tokens
                table.v_host_valid[row] = max(
                    0, min(computed, max(table.v_host_valid[row], closed))
                )
        rank.k = k


def _with_kv(engine: EngineMachine) -> list[int]:
    """Rows whose KV was in HBM, or on its way to or from it."""
    rows: list[int] = []
    for rank in engine.ranks:
        rows += [*rank.running, *rank.prefilling, *rank.held]
    rows += engine.arrived
    rows += [row for row, _ in engine.doubt]
    rows += engine.up.transfers.cut_off(engine)
    return rows


def _stay_on_host(engine: EngineMachine, row: int) -> None:
    """What the host has of the row is all that is left of it: a claim on the host share."""
    table = engine.table
    valid = min(table.v_host_valid[row], table.known_tokens(row) - 1)
    table.v_recomputed[row] += max(0, table.v_computed[row] - valid)
    table.v_computed[row] = table.v_host_valid[row] = valid
    table.v_host_pages[row] = pages_for(valid, engine.page_tokens)
    table.v_status[row] = Status.HOST
    _without_hbm(engine, row)


def _forget(engine: EngineMachine, row: int) -> None:
    table = engine.table
    table.v_recomputed[row] += table.v_computed[row]
    table.v_computed[row] = table.v_host_pages[row] = table.v_host_valid[row] = 0
    table.v_preemptions[row] += 1
    table.v_engine[row] = NO_ENGINE
    table.v_status[row] = Status.INIT
    _without_hbm(engine, row)
    if engine.up.bodies is not None:
        engine.up.tell_body(engine, row, Outcome.LOST)


def _without_hbm(engine: EngineMachine, row: int) -> None:
    table = engine.table
    table.v_pages[row] = table.v_reserved[row] = table.v_shared[row] = 0


def _reset(engine: EngineMachine, end: int) -> None:
    """An engine without rows in HBM, at pass `end`."""
    engine.q = end
    engine.epoch += 1
    engine.alive, engine.prefill, engine.flying = False, False, False
    engine.turn_q = engine.look_q = end
    engine.launched = engine.previous = None
    engine.probe = None
    engine.switch_to = engine.switching = None
    engine.switch_failed = engine.freezing = engine.streaming = False
    engine.joined, engine.left, engine.left_since = {}, {}, {}
    engine.doubt, engine.extending, engine.arrived = [], [], []
    engine.prompts_told, engine.orders, engine.verdicts = [], {}, {}
    engine.granted = {}
    engine.requests.clear()
    engine.num_inbound = engine.num_outbound = engine.sleeping = 0
    engine.stream_used = 0
    engine.stream_growth.clear()
    engine.ready.clear()
    if engine.layout != HOME:
        engine.make_ranks(HOME, engine.home_ranks, engine.home_pages)
    for rank in engine.ranks:
        rank.waiting = rank.debt = 0
        rank.reset()


# -- another layout -------------------------------------------------------------------------------


def only_decodes(engine: EngineMachine) -> bool:
    """Whether the engine has decoding rows and nothing else: nothing comes, waits or leaves."""
    if engine.ready or engine.requests or engine.arrived or engine.extending or engine.doubt:
        return False
    if engine.num_inbound or engine.num_outbound or engine.freezing or engine.sleeping:
        return False
    return not any(rank.prefilling or rank.held or rank.waiting for rank in engine.ranks)


def begin_switch(engine: EngineMachine, offer: Offer, out: list[act.Action]) -> None:
    """All running rows pause, half a prompt is begun again; the backend prepares the layout."""
    rows = list(engine.left)
    for rank in engine.ranks:
        for row in list(rank.prefilling):
            recompute(engine, rank, row)
        for row in list(rank.running):
            engine.unjoin(rank, row)
            rank.held[row] = None
            engine.table.v_status[row] = Status.STALLED
            rows.append(row)
    engine.joined, engine.left = {}, {}
    engine.switch_to, engine.switching = None, offer
    out.append(act.Switch(engine.id, engine.epoch + 1, offer.layout, rows))


def layout_ready(engine: EngineMachine) -> None:
    """Resident rows lease pages of the new ranks, the largest first; whoever does not fit is
    prefilled again. Waiting rows are dealt out anew."""
    offer = engine.switching
    assert offer is not None
    table = engine.table
    resident = [row for rank in engine.ranks for row in rank.held]
    waiting = [row for rank in engine.ranks for lane in rank.lanes for row in lane.drain()]
    for row in resident:
        table.v_shared[row] = 0
    pages_of = {row: table.v_pages[row] for row in resident}
    kv_pages_of = {row: pages_for(table.v_computed[row], engine.page_tokens) for row in resident}
    engine.switching = None
    engine.epoch += 1
    engine.make_ranks(offer.layout, offer.num_ranks, offer.hbm_pages)
    for row in sorted(resident, key=lambda one: (-pages_of[one], one)):
        seated = [one for one in engine.ranks if one.num_resident < engine.seats]
        rank = min(seated or engine.ranks, key=lambda one: (one.used, one.index))
        table.v_rank[row] = rank.index
        table.v_pages[row] = 0
        pages = pages_of[row]
        if table.v_reserved[row]:  # of a rank of another size
            pages = max(kv_pages_of[row], engine.policy.lease(table, row, rank))
        if pages > rank.size - rank.used:
            _not_in_layout(engine, rank, row)
            continue
        rank.lease(row, pages)
        rank.held[row] = None
    for row in waiting:
        enqueue(engine, row, min(engine.ranks, key=lambda one: one.waiting))
    if engine.streaming:
        engine.stream_growth.clear()


def _not_in_layout(engine: EngineMachine, rank: Rank, row: int) -> None:
    """No rank has room for its KV: it waits to be prefilled again, or sleeps on without."""
    table = engine.table
    asleep = table.v_status[row] == Status.SLEEPING
    if asleep:
        engine.sleeping -= 1
        engine.up.lost_asleep(row)
    else:
        table.v_recomputed[row] += table.v_computed[row]
        table.v_preemptions[row] += 1
    table.v_computed[row] = table.v_reserved[row] = 0
    if table.v_host_pages[row]:
        end_stream(engine, row)
        engine.up.out.append(act.Release([row], engine.id, "host"))
    engine.up.out.append(act.Release([row], engine.id, "hbm"))
    if asleep:
        table.v_host_valid[row] = 0
        return
    enqueue(engine, row, rank, front=True)
    if engine.up.bodies is not None:
        engine.up.tell_body(engine, row, Outcome.LOST)


def layout_failed(engine: EngineMachine) -> None:
    """The old layout stands; no other is tried."""
    engine.switching = None
    engine.switch_failed = True
    if engine.layout != HOME:  # rows that wait for the way home may fit nowhere now
        waiting = [row for rank in engine.ranks for lane in rank.lanes for row in lane.drain()]
        for rank in engine.ranks:
            rank.waiting = 0
        for row in waiting:
            enqueue(engine, row, min(engine.ranks, key=lambda one: one.waiting))
