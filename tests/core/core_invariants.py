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
from batchgen.sequence import Phase, Status
from batchgen.step import Step, unroll

STALE = 99
"""An epoch that no short run reaches: a step that nobody asked for."""


class Invariants:
    """Called with the runtime and each entry of its log."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.arrived: set[int] = set()
        self.running: list[list[int]] = [[] for _ in range(case.engines)]  # as told by steps
        self.flying: dict[int, Step] = {}
        self.events = 0
        tokens = sum(row.prompt + row.output for row in case.rows)
        self.most_events = 1000 + 200 * tokens * (1 + len(case.troubles))

    def __call__(self, runtime: Runtime, entry: Entry) -> None:
        self.events += 1
        assert self.events < self.most_events, "does not end"
        if type(entry.event) is ev.Arrived:
            self.arrived.update(entry.event.rows)
        self._follow_steps(runtime, entry)
        self._check_rows(runtime)
        self._check_pages(runtime)
        failed = type(entry.event) is ev.StepDone and entry.event.ended_by == "failed"
        if not failed:  # the loss of the device follows at the same instant
            self._check_liveness(runtime)

    # -- the running set that the backend was told of -------------------------------------------

    def _follow_steps(self, runtime: Runtime, entry: Entry) -> None:
        event = entry.event
        if type(event) is ev.StepDone and event.epoch != STALE:
            step = self.flying.pop(event.engine)
            gone = {row for row, _, _ in event.finished}
            old = self.running[event.engine]
            now = [row for row in old if row not in step.left] + step.joined
            if event.passes:
                now += [row for row, _, _, last in step.chunks if last]
            self.running[event.engine] = [row for row in now if row not in gone]
        elif type(event) is ev.DeviceLost:
            self.flying.pop(event.engine, None)
            self.running[event.engine] = []
        for action in entry.actions:
            if type(action) is Step:
                assert action.engine not in self.flying
                self.flying[action.engine] = action
                self._check_step(runtime, action)
            elif type(action) is act.Finished:
                assert runtime.table.v_status[action.row] == Status.DONE
            elif type(action) is act.Failed:
                assert runtime.table.v_status[action.row] == Status.FAILED

    def _check_step(self, runtime: Runtime, step: Step) -> None:
        engine = runtime.cluster.engines[step.engine]
        table = runtime.table
        old = self.running[step.engine]
        assert len(set(step.joined)) == len(step.joined)
        assert not set(step.joined) & set(old)
        assert set(step.left) <= set(old)
        assert step.n >= 1
        assert step.q0 == engine.q
        assert step.epoch == engine.epoch
        first = next(unroll(step, old))
        assert sorted(first.decodes) == sorted(row for r in engine.ranks for row in r.running)
        tokens = Counter(table.v_rank[row] for row in first.decodes)
        decodes = Counter(tokens)
        for row, start, size, last in step.chunks:
            assert row in engine.ranks[table.v_rank[row]].prefilling
            assert start == table.v_computed[row]
            assert size >= 1
            assert last == (start + size == table.known_tokens(row))
            assert not (last and step.n > 1)
            assert start + size * step.n < table.known_tokens(row) + last
            tokens[table.v_rank[row]] += size
        if self.case.preset in ("vllm", "batchgen"):
            for rank, count in tokens.items():
                assert count <= max(engine.token_budget, decodes[rank])
        if not any(trouble[0] == "plan" for trouble in self.case.troubles):
            assert all(count <= self.case.seqs for count in decodes.values())
        for rank in engine.ranks:
            assert rank.growth.growth(engine.q, step.n) <= rank.pool.free

    # -- rows -----------------------------------------------------------------------------------

    def _check_rows(self, runtime: Runtime) -> None:
        table, cluster = runtime.table, runtime.cluster
        places: Counter[int] = Counter(cluster.homeless)
        for row in cluster.homeless:
            assert table.v_engine[row] == -1
        for rows, donor, _ in cluster.migrating.values():
            for row in rows:
                places[row] += 1
                assert table.v_engine[row] == donor.id
                assert table.v_status[row] == Status.INACTIVE
        waiting = 0
        for engine in cluster.engines:
            for rank in engine.ranks:
                lane = rank.lane.rows()
                waiting += len(lane)
                assert rank.waiting == len(lane), rank.pool.name
                for rows in (rank.running, rank.prefilling, rank.parked, lane):
                    places.update(list(rows))
                    for row in rows:
                        assert (table.v_engine[row], table.v_rank[row]) == (engine.id, rank.index)
                self._check_states(runtime, engine, rank, lane)
            inbound = [row for pairs in engine.inbound.values() for row, _ in pairs]
            outbound = [row for rows in engine.outbound.values() for row in rows]
            for row in [*engine.ready, *inbound, *outbound]:
                places[row] += 1
                assert table.v_engine[row] == engine.id
            for row in [*engine.ready, *outbound]:
                assert table.v_status[row] == Status.INACTIVE
            for row in engine.ready:
                assert table.v_host_valid[row] == table.v_computed[row] > 0
                assert table.v_hbm_pages[row] == 0
            assert set(engine.doomed) <= set(places)
            if not engine.alive:
                assert engine.num_unfinished == engine.arriving
        open_rows = {row for row in self.arrived if table.v_status[row] < Status.DONE}
        assert places == Counter(open_rows)
        assert cluster.unfinished == len(open_rows) or cluster.ended_before_arrival
        assert cluster.total_waiting == waiting

    def _check_states(self, runtime: Runtime, engine: Any, rank: Any, lane: list[int]) -> None:
        table, q = runtime.table, engine.q
        for row in rank.running:
            computed = table.v_offset[row] + q
            assert (table.v_status[row], table.v_phase[row]) == (Status.ACTIVE, Phase.DECODE)
            assert table.v_host_valid[row] <= computed
        for row in rank.prefilling:
            assert (table.v_status[row], table.v_phase[row]) == (Status.ACTIVE, Phase.PREFILL)
            assert table.v_computed[row] < table.known_tokens(row)
        for row in rank.parked:
            assert (table.v_status[row], table.v_phase[row]) == (Status.ACTIVE, Phase.DECODE)
            assert table.v_computed[row] == table.known_tokens(row) - 1
        for row in lane:
            assert table.v_status[row] in (Status.INIT, Status.INACTIVE)
            assert table.v_computed[row] == table.v_host_valid[row] == 0
        for row in [*rank.prefilling, *rank.parked, *lane]:
            assert table.v_host_valid[row] <= table.v_computed[row]

    # -- pages ----------------------------------------------------------------------------------

    def _check_pages(self, runtime: Runtime) -> None:
        table, size = runtime.table, runtime.plan.page_tokens
        hosts: Counter[str] = Counter()
        for engine in runtime.cluster.engines:
            hosts[engine.host.name] += engine.host_leased
            moving: dict[int, list[int]] = {}
            for pairs in engine.inbound.values():
                for row, rank in pairs:
                    moving.setdefault(rank.index, []).append(row)
            for rows in engine.outbound.values():
                for row in rows:
                    moving.setdefault(table.v_rank[row], []).append(row)
            for row in [*engine.ready, *(row for rows in moving.values() for row in rows)]:
                hosts[engine.host.name] += table.v_host_pages[row]
                assert table.v_host_pages[row] >= pages_for(table.v_computed[row], size)
            for rank in engine.ranks:
                self._check_rank(runtime, engine, rank, moving.get(rank.index, []))
                for row in [*rank.prefilling, *rank.parked]:
                    hosts[engine.host.name] += table.v_host_pages[row]
                for row in rank.running:
                    computed = table.v_offset[row] + engine.q
                    streamed = pages_for(computed, size) if rank.streaming else None
                    hosts[engine.host.name] += (
                        table.v_host_pages[row] if streamed is None else streamed
                    )
        for rows, donor, target in runtime.cluster.migrating.values():
            for row in rows:
                hosts[donor.host.name] += table.v_host_pages[row]
                hosts[target.host.name] += table.v_host_pages[row]
        for engine in runtime.cluster.engines:
            assert engine.host.used == hosts[engine.host.name]
            assert 0 <= engine.host.used <= engine.host.size

    def _check_rank(self, runtime: Runtime, engine: Any, rank: Any, moving: list[int]) -> None:
        table, size = runtime.table, runtime.plan.page_tokens
        private, leases = 0, Counter[int]()
        counts = [0] * size
        for row in [*rank.running, *rank.prefilling, *rank.parked, *moving]:
            if table.v_reserved[row]:
                pages = table.v_reserved[row]
            elif row in rank.running:
                pages = pages_for(table.v_offset[row] + engine.q, size)
                counts[-table.v_offset[row] % size] += 1
            elif row in rank.prefilling:
                pages = pages_for(table.known_tokens(row), size)
            else:
                pages = pages_for(table.v_computed[row], size)
            private += pages - table.v_shared[row]
            if table.v_shared[row]:
                leases.update(rank.page_keys(row)[: table.v_shared[row]])
        assert rank.pool.used == private + len(leases), rank.pool.name
        assert 0 <= rank.pool.used <= rank.pool.size
        assert rank.growth.counts == counts
        if rank.prefix is not None:
            assert rank.prefix._leases == dict(leases)
            assert not set(rank.prefix._cached) & set(leases)
            assert rank.prefix.num_cached <= rank.pool.free

    # -- liveness -------------------------------------------------------------------------------

    def _check_liveness(self, runtime: Runtime) -> None:
        cluster = runtime.cluster
        assert not (cluster.homeless and cluster.alive())
        for engine in cluster.engines:
            still = engine.inflight is None and not engine.switching and not engine.num_moving
            if engine.alive and still:
                # Rows on their way from another host are no work yet.
                idle = engine.num_unfinished == engine.arriving
                assert idle, f"engine {engine.id} stands still with work"
