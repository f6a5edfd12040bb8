"""What must hold after every event, recomputed from scratch from the table and the sets of rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from core_cases import Case

from batchgen import actions as act
from batchgen import events as ev
from batchgen.log import Entry
from batchgen.memory.pool import pages_for
from batchgen.runtime.core import Runtime
from batchgen.runtime.engine.machine import EngineMachine
from batchgen.runtime.engine.rank import Rank
from batchgen.sequence import Status
from batchgen.step import Step

RESIDENT = {
    "running": (Status.DECODE,),
    "prefilling": (Status.PREFILL,),
    "held": (
        Status.STALLED,
        Status.EXTENDING,
        Status.SLEEPING,
        Status.FROZEN,
        Status.DOUBT,
        Status.MOVING,
    ),
}


class Invariants:
    """Called with the runtime and each entry of its log."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.arrived: set[int] = set()
        self.events = 0
        self.budgets_changed = False
        self.decoders_short = False

    def __call__(self, runtime: Runtime, entry: Entry) -> None:
        if isinstance(entry.event, ev.Arrived):
            self.arrived.update(entry.event.rows)
        elif isinstance(entry.event, ev.PlanChanged):
            self.budgets_changed = True
        elif isinstance(entry.event, ev.DeviceLost | ev.PoolShort):
            self.decoders_short |= runtime.cluster.engines[entry.event.engine].role == "decode"
        for action in entry.actions:
            if isinstance(action, Step):
                self._check_step(runtime, action)
            elif isinstance(action, act.Finished):
                assert runtime.table.v_status[action.row] == Status.DONE
            elif isinstance(action, act.Failed):
                assert runtime.table.v_status[action.row] == Status.FAILED
        self._check_places(runtime)
        self._check_requests(runtime)
        for engine in runtime.cluster.engines:
            for rank in engine.ranks:
                self._check_rank(runtime, engine, rank)
            self._check_host(runtime, engine)
            self._check_liveness(runtime, engine)

    # -- steps ------------------------------------------------------------------------------------

    def _check_step(self, runtime: Runtime, step: Step) -> None:
        engine, table = runtime.cluster.engines[step.engine], runtime.table
        assert engine.alive
        assert engine.launched is step
        assert step.n >= 1
        assert (step.q0, step.epoch) == (engine.q, engine.epoch)
        assert len(set(step.joined)) == len(step.joined)
        assert len(set(step.left)) == len(step.left)
        tokens: Counter[int] = Counter()
        longest: Counter[int] = Counter()
        pieces: Counter[int] = Counter()
        for row, start, size, last in step.chunks:
            rank = table.v_rank[row]
            assert row in engine.ranks[rank].prefilling
            assert start == table.v_computed[row]
            assert size >= 1
            assert last == (start + size == table.known_tokens(row))
            assert not (last and step.n > 1)
            assert start + size * step.n < table.known_tokens(row) + last
            tokens[rank] += size
            pieces[rank] += 1
            longest[rank] = max(longest[rank], size)
        if engine.role == "prefill" and not (self.decoders_short or self.budgets_changed):
            for rank in engine.ranks:
                for row in rank.running:  # a row that fits nowhere goes on where it is, and fails
                    tokens = table.v_offset[row] + rank.k + 1
                    assert pages_for(tokens, rank.page_tokens) > rank.size, table.story(row)
        if engine.pauses:  # ranks with prompts, and no others
            busy = [rank.index for rank in engine.ranks if pieces[rank.index]]
            everywhere = len(busy) == len(engine.ranks)
            assert (step.decode, step.paused) == (not everywhere, [] if everywhere else busy)
        else:
            assert not step.paused
        for rank in engine.ranks:
            runs = step.decode and rank.index not in step.paused
            decodes = len(rank.running) + len(rank.dead) if runs else 0
            count = tokens[rank.index]
            if step.until == "all":  # padding is computed too
                count = longest[rank.index] * pieces[rank.index]
            assert decodes + count <= max(engine.token_budget, decodes)
            if not self.budgets_changed:
                assert decodes <= engine.seats
            if runs:
                assert rank.growth.growth(rank.k, step.n) <= rank.free

    # -- where rows are ---------------------------------------------------------------------------

    def _check_requests(self, runtime: Runtime) -> None:
        """Engines know how many rows ask there: those whose request lives, and no others."""
        transfers = runtime.cluster.transfers
        for engine in runtime.cluster.engines:
            live = sum(transfers.asks(row, stamp) for row, _, stamp in engine.requests)
            assert engine.asked == live, (engine.id, engine.asked, live)

    def _check_places(self, runtime: Runtime) -> None:
        table, cluster = runtime.table, runtime.cluster
        places: Counter[int] = Counter(cluster.homeless)
        copied: Counter[int] = Counter()
        for batch in cluster.transfers.in_copy().values():
            for row in batch.rows:
                copied[row] += 1
                assert table.v_status[row] == Status.MOVING
                assert table.v_engine[row] == batch.source.id
        for engine in cluster.engines:
            places.update(self._places_at(runtime, engine, copied))
        places.update(copied)
        for row in self.arrived:
            if table.v_status[row] == Status.SLEEPING and not table.v_pages[row]:
                places[row] = max(places[row], 1)
            if table.v_status[row] == Status.HOST and not places[row]:
                assert row in cluster.transfers._stamps  # it asks for pages elsewhere
                places[row] += 1
        unfinished = {row for row in self.arrived if not table.ended(row)}
        assert places == Counter(unfinished), places - Counter(unfinished)
        early = {row for row in range(len(table)) if table.ended(row)} - self.arrived
        assert cluster.unfinished == len(unfinished), (cluster.unfinished, unfinished, early)

    def _places_at(
        self, runtime: Runtime, engine: EngineMachine, copied: Counter[int]
    ) -> Counter[int]:
        table = runtime.table
        places: Counter[int] = Counter()
        for rank in engine.ranks:
            waiting = 0
            for index, lane in enumerate(rank.lanes):
                rows = lane.rows()
                waiting += len(rows)
                places.update(rows)
                for row in rows:
                    assert table.v_status[row] == Status.WAITING
                    assert table.v_lane[row] == index
                    assert (table.v_engine[row], table.v_rank[row]) == (engine.id, rank.index)
                    assert table.v_computed[row] == table.v_pages[row] == 0, table.story(row)
                    assert table.v_host_pages[row] == table.v_host_valid[row] == 0
            assert rank.waiting == waiting
            left = 0
            for name, statuses in RESIDENT.items():
                for row in getattr(rank, name):
                    assert table.v_status[row] in statuses, table.story(row)
                    assert (table.v_engine[row], table.v_rank[row]) == (engine.id, rank.index)
                    if name == "running":
                        valid, computed = table.v_host_valid[row], table.v_offset[row] + rank.k
                        assert valid <= computed, table.story(row)
                    if name == "prefilling":
                        left += table.known_tokens(row) - table.v_computed[row]
                        assert table.v_computed[row] < table.known_tokens(row)
                    if not copied[row]:
                        places[row] += 1
            assert rank.prompt_left == left
        held = [row for rank in engine.ranks for row in rank.held]
        assert engine.sleeping == sum(table.v_status[row] == Status.SLEEPING for row in held)
        for row in engine.ready:
            assert table.v_status[row] == Status.HOST
            assert table.v_pages[row] == 0
            assert table.v_host_valid[row] >= table.v_computed[row] > 0, table.story(row)
        places.update(engine.ready)
        for row in engine.arrived:
            assert table.v_status[row] == Status.ARRIVED
        places.update(engine.arrived)
        for row in engine.orders:
            assert table.v_engine[row] == engine.id, table.story(row)
            assert not table.ended(row)
        for row, _ in engine.doubt:
            assert table.v_status[row] == Status.DOUBT, table.story(row)
            if not any(row in rank.held for rank in engine.ranks):
                places[row] += 1
        return places

    # -- pages ------------------------------------------------------------------------------------

    def _check_rank(self, runtime: Runtime, engine: EngineMachine, rank: Rank) -> None:
        table, size, k = runtime.table, rank.page_tokens, rank.k
        lanes = [0] * len(rank.lanes)
        shared: Counter[int] = Counter()
        counts = [0] * size
        private = 0

        def lease(row: int, pages: int, *, shares: bool = True) -> None:
            nonlocal private
            lanes[table.v_lane[row]] += pages
            first = table.v_shared[row] if shares else 0
            private += pages - first
            if first:
                assert rank.page_keys is not None
                shared.update(rank.page_keys(row)[:first])

        for row in [*rank.running, *rank.dead]:
            if table.v_reserved[row]:
                lease(row, table.v_pages[row])
            else:
                lease(row, pages_for(table.v_offset[row] + k, size))
                counts[-table.v_offset[row] % size] += 1
        for row in [*rank.prefilling, *rank.held]:
            lease(row, table.v_pages[row])
            if row in rank.prefilling:
                assert table.v_pages[row] >= pages_for(table.known_tokens(row), size)
            elif table.v_status[row] != Status.EXTENDING:
                assert table.v_pages[row] >= pages_for(table.v_computed[row], size)
        leaving = 0
        for row in _suspending(runtime, engine):
            if table.v_rank[row] == rank.index:
                leaving += table.v_pages[row]
                lease(row, table.v_pages[row])
        assert rank.outbound_pages == leaving
        inbound = 0
        for row, (index, pages) in engine.granted.items():
            if index == rank.index:
                inbound += 1
                lease(row, pages, shares=False)
        for row in engine.arrived:
            if table.v_rank[row] == rank.index:
                inbound += 1
                lease(row, table.v_pages[row])
        assert rank.inbound == inbound
        assert rank.used == private + len(shared), (rank.used, private, len(shared))
        assert 0 <= rank.used <= rank.size
        assert rank.growth.counts == counts
        assert rank.growth.num_rows == sum(counts)
        if rank.lane_used:
            assert rank.lane_used == lanes
        if rank.prefix is not None:
            assert rank.prefix._leases == dict(shared)
            assert not set(rank.prefix._cached) & set(shared)
            assert set(rank.prefix._origin) == set(shared) | set(rank.prefix._cached)

    def _check_host(self, runtime: Runtime, engine: EngineMachine) -> None:
        table, size = runtime.table, runtime.plan.page_tokens
        claims = {row for row in self.arrived if _on_host(runtime, engine, row)}
        assert engine.host_used == sum(table.v_host_pages[row] for row in claims)
        streams = 0
        for rank in engine.ranks:
            for row in rank.running:
                if engine.streaming:
                    streams += pages_for(table.v_offset[row] + rank.k, size)
                else:
                    assert table.v_host_pages[row] == 0
            streams += sum(table.v_host_pages[row] for row in [*rank.prefilling, *rank.held])
        streams += sum(table.v_host_pages[row] for row in engine.arrived)
        assert engine.stream_used == streams
        assert engine.host_used + engine.stream_used <= engine.host_size

    # -- liveness ---------------------------------------------------------------------------------

    def _check_liveness(self, runtime: Runtime, engine: EngineMachine) -> None:
        busy = engine.launched is not None or engine.flying or engine.switching is not None
        if busy or not engine.alive or engine.num_inbound or engine.num_outbound:
            return
        assert not engine.doubt
        assert not engine.arrived
        for rank in engine.ranks:
            assert not rank.running, "rows stand still"
            assert not rank.prefilling, "rows stand still"
            status = runtime.table.v_status
            waits = [row for row in rank.held if status[row] == Status.STALLED]
            leaves = [row for row in rank.held if status[row] in (Status.FROZEN, Status.MOVING)]
            sleeps = [row for row in rank.held if status[row] == Status.SLEEPING]
            assert len(rank.held) == len(waits) + len(leaves) + len(sleeps)
            assert leaves or not waits, "rows pause for nobody"
        resident = any(one.held for one in engine.ranks)
        assert resident or not (engine.num_waiting or engine.ready), "rows wait at an idle engine"


def _suspending(runtime: Runtime, engine: EngineMachine) -> list[int]:
    """Rows on their way to the engine's host, whose HBM pages are not free yet."""
    rows = [row for row, what in engine.doubt if what == "suspend"]
    for batch in runtime.cluster.transfers.in_copy().values():
        if batch.kind == "suspend" and batch.source is engine:
            rows += batch.rows
    return rows


def _on_host(runtime: Runtime, engine: EngineMachine, row: int) -> bool:
    """Whether the row has a claim on the engine's host share."""
    table: Any = runtime.table
    if table.v_engine[row] != engine.id:
        return False
    if table.v_status[row] == Status.HOST or (row, "suspend") in engine.doubt:
        return True
    for batch in runtime.cluster.transfers.in_copy().values():
        if row in batch.rows:
            return batch.kind != "migrate" or batch.from_host
    return False
