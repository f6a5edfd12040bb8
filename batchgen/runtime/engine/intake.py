"""Rows of the lanes: which of them begin, and the prompts of the next pass.

One test for pages, the admission part's, as in `granting`; a rank without rows takes the next one
unasked.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.memory.pool import FOREVER, pages_for
from batchgen.runtime.engine.chunks import chunk_sizes, prompt_budgets
from batchgen.runtime.engine.deck import FRONT, REAR, Deck
from batchgen.runtime.engine.giving import spill
from batchgen.runtime.engine.landing import publish
from batchgen.runtime.engine.streams import lease_stream
from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen.runtime.engine.lane import Lane
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank

PREFILL = int(Status.PREFILL)
_USED = attrgetter("used")


def admit_all(engine: EngineMachine, out: list[act.Action]) -> None:
    """Every rank takes what it can, and the cluster is told when the lanes are empty: to a
    fixpoint, because rows that it then offers may land on a rank that was asked already."""
    ranks = engine.ranks
    shares = engine.page_keys is not None
    takes = engine.policy.phase.takes if engine.pauses else None
    while True:
        for rank in ranks:
            if (
                rank.waiting
                and not rank.gave
                and (takes is None or rank.prefilling or takes(engine, rank))
            ):
                admit(engine, rank, out)
            elif shares and rank.prefilling:
                schedule_prompts(engine, rank, out)
        if not hunger(engine):
            return


def holds_back(engine: EngineMachine) -> bool:
    """Whether ranks wait for each other with their prompts, by the phase part. While a prompt is at
    work others may join it."""
    able = asking = 0
    for rank in engine.ranks:
        if rank.prefilling:
            return False
        if rank.waiting and not rank.gave:
            asking += 1
            able += _is_able(engine, rank)
    return not engine.policy.phase.gathered(engine, able, asking)


def _is_able(engine: EngineMachine, rank: Rank) -> bool:
    """Whether the rank has room for some row that waits there; the first of a lane is next."""
    table, policy = engine.table, engine.policy
    resident = rank.num_seated
    if resident >= engine.seats:
        return False
    growth = rank.growth
    free = rank.size - rank.used - growth.counts[rank.k % growth.page_tokens]
    for lane in rank.lanes:
        row = lane.peek()
        if row < 0:
            continue
        if not (resident or rank.used):
            return True
        pages = pages_for(table.known_tokens(row), rank.page_tokens)
        if policy.reserves:
            pages = max(pages, policy.lease(table, row, rank))
        if (
            policy.room_for(engine, rank, row, pages, free)
            if policy.sees_row
            else policy.room(engine, rank, pages, free, resident)
        ):
            return True
    return False


def hunger(engine: EngineMachine) -> bool:
    """Tell the cluster that nothing waits here; True when rows came at once. It is told once, and
    again at every boundary and when nothing is left: rows were refused while there was enough.

    `settled` and `had` must not depend on the length of steps: they are written at no other times,
    and whenever a row waits (which ends steps at every finish).
    """
    if not engine.policy.steals or engine.role == "decode":
        return False
    if any(rank.waiting for rank in engine.ranks):
        engine.had = engine.settled + engine.num_waiting
        engine.settled = engine.num_begun
        return False
    resident = engine.num_begun
    if engine.told and resident:
        again_q = engine.turn_q if engine.phases else engine.look_q
        if engine.prefill or engine.q < again_q:
            return False
    engine.had = engine.settled + engine.num_waiting
    engine.settled = resident
    engine.told = True
    return engine.up.hunger.hungry(engine)


def schedule_prompts(engine: EngineMachine, rank: Rank, out: list[act.Action]) -> None:
    """Publish the pages that the next pass computes: rows admitted behind may share them."""
    done = engine.table.v_computed
    for row, _, size in chunk_sizes(engine, rank):
        publish(engine, rank, row, done[row] + size, out)


def admit(engine: EngineMachine, rank: Rank, out: list[act.Action]) -> None:
    """Rows of the rank's lanes get pages, in the order of their lanes, while seats, pages and the
    pass budget last."""
    if rank.prefix is not None:
        schedule_prompts(engine, rank, out)
    (budget, paced), planned = prompt_budgets(engine, rank), rank.prompt_left
    lanes = rank.lanes
    several = len(lanes) > 1
    if planned >= budget and not several:
        return
    if engine.policy.whole_batch and not engine.open:
        return
    table, policy = engine.table, engine.policy
    seats, resident = engine.seats, rank.num_seated
    free = rank.size - rank.used
    if not engine.prefill:
        growth = rank.growth
        free -= growth.counts[rank.k % growth.page_tokens]
    blocked = 0  # lanes before this one have no room
    deck = lanes[0] if policy.two_ended else None
    refused = -1  # the end of the deck whose row found no room
    reserves, page_tokens = policy.reserves, rank.page_tokens
    prompt, produced = table.v_prompt, table.v_produced
    if policy.whole_batch:  # it ends with its last row, so it takes all that memory holds
        budget = paced = FOREVER
    while rank.waiting and (several or planned < budget):
        if resident >= seats:
            if not _spill_one(engine, rank):
                return
            resident -= 1
            free = rank.size - rank.used
            continue
        if several:
            blocked, row = _next_of_lanes(engine, rank, blocked, planned < budget)
            lane = lanes[blocked] if row >= 0 else lanes[0]
        else:
            lane = lanes[0]
            if isinstance(deck, Deck) and not _turn(engine, rank, deck, refused):
                return
            row = lane.peek()
        if row < 0:
            return
        from_rear = isinstance(deck, Deck) and deck.side == REAR
        if planned >= paced and not several and not from_rear:
            return
        known = prompt[row] + produced[row]
        pages = -(-known // page_tokens)
        if reserves:
            pages = max(pages, policy.lease(table, row, rank))
        hits = rank.hits(row) if rank.prefix is not None and not reserves else 0
        need = rank.new_pages(row, pages, hits) if hits else pages
        if (resident or rank.used) and not (
            policy.room_for(engine, rank, row, need, free)
            if policy.sees_row
            else policy.room(engine, rank, need, free, resident)
        ):
            if _spill_one(engine, rank):
                resident -= 1
                free = rank.size - rank.used
                continue
            if several and blocked + 1 < len(lanes):
                blocked += 1
                continue
            if isinstance(deck, Deck) and refused < 0 and not deck.has_returned:
                refused = deck.side
                continue
            return
        lane.pop()
        left = _begin(engine, rank, lane, row, known, pages, hits, out)
        free -= need
        planned += left
        if policy.paces and table.v_side[row] == REAR:
            paced = min(budget, paced + left)
        resident += 1
        refused = -1


def _begin(
    engine: EngineMachine,
    rank: Rank,
    lane: Lane,
    row: int,
    known: int,
    pages: int,
    hits: int,
    out: list[act.Action],
) -> int:
    """A row of `known` tokens, taken from its lane, leases its pages, of which `hits` are there
    already. Returns the tokens that it is to prefill."""
    table = engine.table
    rank.waiting -= 1
    if isinstance(lane, Deck):
        if row in lane.units:
            table.v_expected[row] = max(round(lane.units[row].output_tokens), 1)
        table.v_side[row] = lane.side
    table.v_computed[row] = 0
    rank.lease(row, pages)
    if engine.policy.reserves:
        table.v_reserved[row] = 1
    if hits:
        rank.adopt(row, hits)
        table.v_adopted[row] += table.v_computed[row]
        out.append(act.Adopt(row, engine.id, hits))
    table.v_status[row] = PREFILL
    rank.prefilling[row] = None
    left = known - table.v_computed[row]
    rank.prompt_left += left
    if rank.prefix is not None:
        schedule_prompts(engine, rank, out)
    if engine.streaming:
        lease_stream(engine, row, -(-known // rank.page_tokens))
    if engine.up.bodies is not None:
        engine.up.start_body(engine, row)
    return left


def _turn(engine: EngineMachine, rank: Rank, deck: Deck, refused: int) -> bool:
    """Turn the deck to the end that gives the next row; False: none does now. Rows that lost their
    pages come first, from no end."""
    if deck.peek() < 0:
        return False
    if deck.has_returned:
        deck.side = FRONT
        return True
    end = engine.policy.order.end(rank, deck, rank.k, refused)
    if end < 0 or end == refused:
        if rank.num_resident or rank.used or refused >= 0:
            return False
        end = FRONT
    deck.side = end
    return True


def _next_of_lanes(
    engine: EngineMachine, rank: Rank, blocked: int, budget_left: bool
) -> tuple[int, int]:
    """(lane, row) of the next row to ask for: the first lane from `blocked` on with a row and a
    share left, or one that has the rank to itself. (.., -1): none."""
    lanes, shares = rank.lanes, engine.policy.shares
    heads = [lane.peek() for lane in lanes]
    prompts = [_prompt_left_of(engine, rank, lane) for lane in range(len(lanes))]
    for index in range(blocked, len(lanes)):
        if heads[index] < 0:
            continue
        others = any(
            heads[other] >= 0 or prompts[other] > 0 for other in range(len(lanes)) if other != index
        )
        if not others:
            if budget_left:
                return index, heads[index]
            continue
        within_pages = rank.lane_used[index] < shares[index] * rank.size
        if within_pages and prompts[index] < shares[index] * engine.token_budget:
            return index, heads[index]
    return blocked, -1


def _prompt_left_of(engine: EngineMachine, rank: Rank, lane: int) -> int:
    """Tokens without KV of the admitted rows of a lane."""
    table = engine.table
    return sum(
        table.known_tokens(row) - table.v_computed[row]
        for row in rank.prefilling
        if table.v_lane[row] == lane
    )


def _spill_one(engine: EngineMachine, rank: Rank) -> bool:
    """In a prefill phase the newest row whose KV is whole on the host makes room for a prompt."""
    if not (engine.prefill and engine.streaming and engine.policy.suspends and rank.running):
        return False
    row = next(reversed(rank.running))
    table = engine.table
    if table.v_host_valid[row] != table.v_offset[row] + rank.k:
        return False
    spill(engine, rank, row)
    return True
