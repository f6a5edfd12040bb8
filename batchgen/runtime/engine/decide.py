"""The next step of an engine. A decision is a fixpoint: asking again would change nothing.

In order: orders from outside, arrivals, phase, memory, follow-ups, rows with KV, rows of the lanes,
then the composition and the number of passes for which it stands. Without phases every decision
asks everything; with phases that is done at boundaries, and in a prefill phase at every pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen import actions as act
from batchgen.memory.pool import FOREVER
from batchgen.runtime.advisor import HOME, RankLoad
from batchgen.runtime.engine.chunks import chunk_sizes
from batchgen.runtime.engine.giving import (
    carry_out_orders,
    freeze,
    go_on,
    make_room,
    outgrew,
    pay_debt,
    release_dead,
    settle_doubt,
)
from batchgen.runtime.engine.granting import extend_now, join_arrived, take_in
from batchgen.runtime.engine.intake import admit_all, holds_back, hunger
from batchgen.runtime.engine.leaving import begin_switch, only_decodes
from batchgen.runtime.engine.streams import drop_streams, pause, resume
from batchgen.sequence import Status
from batchgen.step import Chunk, Step

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank

STALLED = int(Status.STALLED)
_NO_RANK: list[int] = []


def decide(engine: EngineMachine, out: list[act.Action]) -> None:
    """Decide and launch the engine's next step, if it has one and a free slot."""
    if engine.launched is not None or not engine.alive or engine.switching is not None:
        return
    if engine.switch_to is not None and _switches(engine, out):
        return
    begin = len(out)
    turn, gave = engine.q >= engine.turn_q, False
    if engine.phases and not (turn or engine.prefill):
        turn = engine.urgent or _cannot_wait(engine)
    engine.urgent = engine.freed = False
    if engine.orders:
        carry_out_orders(engine)
    if turn or engine.prefill:
        gave = _ask(engine, turn, out)
    if engine.up.looks and _looks(engine, turn):
        engine.look_q = engine.q + engine.boundary
        engine.up.look(engine)
    if engine.switch_to is not None:
        settle_doubt(engine, out)
        if _switches(engine, out):
            return
    passes, first, chunks = _compose(engine)
    shares, again = engine.page_keys is not None, gave or engine.freed
    if passes > 1 and _next_pass_differs(engine, gave, shares):
        passes = 1
    engine.once = False
    if engine.doubt:
        settle_doubt(engine, out)
    if engine.lag and passes > 1 and (engine.doubt or engine.left or engine.prompts_told):
        passes = 1  # the next report tells more about them
    if shares:
        _evict(engine, out, begin)
    if passes:
        _launch(engine, passes, first, chunks, out)
    elif again and not engine.doubt:
        decide(engine, out)  # pages came free: ask again
    elif engine.left:
        out.append(act.Leave(engine.id, list(engine.left)))
        engine.left = {}


def _next_pass_differs(engine: EngineMachine, gave: bool, shares: bool) -> bool:
    """Whether the decision may find more to do one pass later, though no event tells it."""
    if engine.once:
        return True
    if (
        gave
        and not engine.phases
        # Whoever gave way may fit with shared pages, or another row where it did not.
        and (engine.policy.choosy or shares or engine.ready or engine.requests)
    ):
        return True
    # A pass whose duration is to be known by itself.
    return engine.probe is not None and engine.q - engine.probe[0] <= engine.lag


def _switches(engine: EngineMachine, out: list[act.Action]) -> bool:
    """Change the layout when nothing is in flight; True: nothing else is decided now. A layout for
    a tail is given up when rows have come meanwhile; going home waits for copies under way."""
    offer = engine.switch_to
    assert offer is not None
    if engine.flying:
        return True
    if offer.layout == HOME:
        if engine.doubt or engine.num_outbound or engine.num_inbound > len(engine.arrived):
            return True
        join_arrived(engine)
    elif not only_decodes(engine):
        engine.switch_to = None
        return False
    begin_switch(engine, offer, out)
    return True


def _looks(engine: EngineMachine, turn: bool) -> bool:
    """Whether the engine looks beyond itself now: every `boundary` passes, whatever the steps. One
    that hands over what it has prefilled has nothing that others could rescue."""
    if engine.phases and not (engine.prefill and engine.role == "both"):
        return turn and not engine.prefill
    return engine.q >= engine.look_q


def _cannot_wait(engine: EngineMachine) -> bool:
    """Between boundaries: nothing runs, or pages run out earlier than they should."""
    runs = False
    for rank in engine.ranks:
        growth = rank.growth
        if growth.counts[rank.k % growth.page_tokens] > rank.size - rank.used:
            return True
        if rank.running:
            runs = True
            if engine.policy.reserves and _passes_reserved(engine, rank) == 0:
                return True
    return not runs


def _ask(engine: EngineMachine, turn: bool, out: list[act.Action]) -> bool:
    """Everything that a boundary asks; returns whether somebody gave way."""
    phases, ranks, policy = engine.phases, engine.ranks, engine.policy
    for rank in ranks:
        rank.gave = False
        if rank.debt:
            pay_debt(engine, rank)
    if engine.freezing:
        freeze(engine)
    if engine.layout != HOME and engine.num_waiting:
        engine.up.undo(engine)
    if engine.switch_to is not None:
        return False
    if engine.arrived:
        join_arrived(engine)
    if phases:
        if _prefills(engine, turn, out):
            return False
        engine.turn_q = engine.q + engine.turn_every
    gave = False
    for rank in ranks:
        growth = rank.growth
        rows = growth.num_rows
        short = growth.counts[rank.k % growth.page_tokens] > rank.size - rank.used
        grows = not (rank.prefilling and engine.pauses)  # else it computes these next
        if rows and grows and (short or phases) and make_room(engine, rank):
            rank.gave = gave = True
        if rank.held:
            go_on(engine, rank)
        if policy.reserves and grows and rank.running and _passes_reserved(engine, rank) == 0:
            outgrew(engine, rank, next(iter(rank.running)))
    if engine.extending:
        extend_now(engine)
    if policy.renews:
        _when_empty(engine)
    if (engine.ready or engine.requests) and not gave:
        take_in(engine, out)
    if not phases:
        if policy.gathers and engine.num_waiting and holds_back(engine):
            hunger(engine)
        else:
            admit_all(engine, out)
    return gave


def _prefills(engine: EngineMachine, turn: bool, out: list[act.Action]) -> bool:
    """With phases: whether the next pass belongs to a prefill phase."""
    ranks = engine.ranks
    if not engine.prefill:
        if engine.extending:
            extend_now(engine)
        if not any(rank.prefilling for rank in ranks):
            if not turn or not engine.policy.phase.starts_prefill(engine):
                return False
            if not (engine.num_waiting or (hunger(engine) and engine.num_waiting)):
                return False
        engine.prefill = True
    elif engine.extending:
        extend_now(engine)
    if engine.policy.renews:
        _when_empty(engine)
    admit_all(engine, out)
    engine.prefill = any(rank.prefilling for rank in ranks)
    return engine.prefill


def _when_empty(engine: EngineMachine) -> None:
    """What begins anew when no row is left: a batch, a host's streams."""
    live = any(rank.num_resident for rank in engine.ranks)
    engine.open = not live
    for rank in engine.ranks:
        # (A budget that was lowered meanwhile may be filled by dead rows alone.)
        if rank.dead and (not live or (len(rank.dead) >= engine.token_budget and rank.prefilling)):
            release_dead(engine, rank)
    if live:
        return
    if engine.policy.streams and engine.host_size and not engine.streaming and not engine.arrived:
        engine.streaming = True
        engine.stream_growth.clear()


# -- the composition ------------------------------------------------------------------------------


def _compose(engine: EngineMachine) -> tuple[int, bool, list[Chunk]]:
    """(passes for which the composition stands, whether a finish ends it, prompt chunks); 0 passes:
    nothing runs."""
    policy, prefill = engine.policy, engine.prefill
    phases, pauses = engine.phases, engine.pauses
    passes = engine.max_passes
    listens = engine.up.bodies is not None or bool(engine.up.awaited)
    listens = listens or (policy.reads_ended and engine.up.may_come)
    runs, first = False, listens
    chunks: list[Chunk] = []
    for rank in engine.ranks:
        running = rank.running
        if pauses and rank.paused != (len(rank.prefilling) > 0):
            (resume if rank.paused else pause)(engine, rank)
        if not prefill and not rank.paused and (running or rank.dead):
            if running:
                runs = True
                if policy.reserves:
                    passes = min(passes, _passes_reserved(engine, rank))
            if rank.growth.num_rows:
                fit = _passes_that_fit(rank)
                if fit < passes:
                    passes = fit
        if rank.prefilling and (prefill or not phases):
            runs = first = True
            passes = _cut_prompts(engine, rank, passes, chunks)
            if policy.paces and not prefill:
                passes = 1
        if not phases:
            if rank.waiting:
                # (A whole batch waits for its last row, but others who take of what waits here look
                # at what this engine has left.)
                first = first or policy.steals or not policy.whole_batch
                if policy.ask_each_pass:
                    passes = 1
            if rank.held:
                first = True
                status = engine.table.v_status
                if any(status[row] == STALLED for row in rank.held):
                    passes = 1  # they ask again: growth is not monotone
        if rank.debt and passes > 1:
            passes = 1
    if not runs:
        return 0, False, chunks
    if engine.streaming and not prefill:
        passes = _within_host_share(engine, passes)
    if phases and not prefill:
        first = listens
        passes = min(passes, engine.turn_q - engine.q)
    elif engine.ready or engine.requests or engine.doubt:
        first = True
        if policy.ask_each_pass and (engine.ready or engine.requests):
            passes = 1
    if engine.page_keys is not None:
        first = True
    if engine.up.looks and (not phases or (prefill and engine.role == "both")):
        passes = min(passes, max(engine.look_q - engine.q, 1))
    if first and policy.static:
        passes = 1  # its steps do not end with a finish
    return passes, first, chunks


def _cut_prompts(engine: EngineMachine, rank: Rank, passes: int, chunks: list[Chunk]) -> int:
    """Adds the prompt pieces of a rank's next pass; returns for how many of `passes` all of them
    go on alike."""
    computed = engine.table.v_computed
    count = 0
    for row, need, size in chunk_sizes(engine, rank):
        last = size == need
        chunks.append((row, computed[row], size, last))
        count += 1
        if last or count > 1 or (rank.waiting and (rank.lane_used or rank.prefix is not None)):
            passes = 1
        elif (need - 1) // size < passes:
            passes = (need - 1) // size
    decodes = rank.running and not (engine.prefill or rank.paused)
    if not count and not decodes and passes > 1:
        return 1
    return passes


def _passes_that_fit(rank: Rank) -> int:
    """Passes whose growth fits the free pages. With a prefix index: without giving up cached pages,
    which a longer step would forget too early, or for one pass."""
    free, growth, k = rank.size - rank.used, rank.growth, rank.k
    if rank.prefix is not None:
        return max(1, growth.passes_that_fit(k, free - rank.prefix.num_cached))
    rows = growth.num_rows
    return free // rows * growth.page_tokens if free >= rows else growth.passes_that_fit(k, free)


def _passes_reserved(engine: EngineMachine, rank: Rank) -> int:
    """Passes until the only row that may outgrow its reservation has filled it."""
    if len(rank.running) != 1:
        return FOREVER  # a row whose worst case exceeds the pool runs alone
    table = engine.table
    row = next(iter(rank.running))
    have = table.v_pages[row] * rank.page_tokens
    if not table.v_reserved[row] or have >= table.v_prompt[row] + table.v_budget[row]:
        return FOREVER
    return have - table.v_offset[row] - rank.k


def _within_host_share(engine: EngineMachine, passes: int) -> int:
    """Streams yield when the very next pass has no room for them on the host."""
    free = engine.host_size - engine.host_used - engine.stream_used
    fit = engine.stream_growth.passes_that_fit(engine.k, free)
    if fit == 0:
        drop_streams(engine)
        return passes
    return min(passes, fit)


def _launch(
    engine: EngineMachine, passes: int, first: bool, chunks: list[Chunk], out: list[act.Action]
) -> None:
    joined: list[int] = []
    left: list[int] = []
    if engine.joined:
        joined, engine.joined = list(engine.joined), {}
    if engine.left:
        left, engine.left = list(engine.left), {}
    until = "all" if engine.policy.static else "first" if first else "n"
    ranks, decode, paused = engine.ranks, not engine.prefill, _NO_RANK
    if engine.pauses and chunks:
        paused = [rank.index for rank in ranks if rank.paused]
        if len(paused) == len(ranks):
            decode, paused = False, _NO_RANK
    step = Step(
        engine.id,
        engine.q,
        engine.epoch,
        passes,
        until,
        decode,
        joined,
        left,
        chunks,
        "host" if engine.streaming else "",
        engine.role == "prefill",
        paused,
    )
    engine.launched = step
    engine.flying = True
    engine.begin_pages = ranks[0].used if len(ranks) == 1 else engine.hbm_used()
    out.append(step)
    if engine.probe is not None and engine.probe[0] == engine.q:
        engine.probe = (engine.q, engine.up.pace.expected_ps(engine, _loads(engine, step)))


def _loads(engine: EngineMachine, step: Step) -> list[RankLoad]:
    """What the first pass of a step holds, per rank."""
    table = engine.table
    loads = []
    for rank in engine.ranks:
        decodes = len(rank.running) if step.decode and not rank.paused else 0
        context = rank.offsets + decodes * (rank.k + 1)
        mine = [chunk for chunk in step.chunks if table.v_rank[chunk[0]] == rank.index]
        tokens = sum(size for _, _, size, _ in mine)
        loads.append(
            (
                decodes,
                context if decodes else 0,
                tokens,
                sum((start + size) ** 2 - start * start for _, start, size, _ in mine),
                sum(start for _, start, _, _ in mine),
                decodes + sum(last for _, _, _, last in mine),
                decodes + tokens if step.checkpoint else 0,
            )
        )
    return loads


def _evict(engine: EngineMachine, out: list[act.Action], begin: int) -> None:
    """Cached pages yield to what this decision leased and the next pass needs. `begin`: where its
    actions begin, so that the pages are free before an executor takes any for it."""
    for rank in engine.ranks:
        assert rank.prefix is not None
        growth = rank.growth
        grows = not (engine.prefill or rank.paused)
        need = growth.counts[rank.k % growth.page_tokens] if grows else 0
        runs = rank.prefix.shrink(rank.size - rank.used - need)
        if runs:
            out.insert(begin, act.Evict(engine.id, rank.index, runs))
