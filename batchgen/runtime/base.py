"""What every part of the runtime shares: the table, the cluster, the policy's parts in order.

The runtime is one state machine, written in several files by concern; this is their common ground.
"""

from __future__ import annotations

from typing import Any

from batchgen.actions import Action
from batchgen.coroutine import Bodies, BodyFactory
from batchgen.memory.pool import Pool
from batchgen.plan import Plan
from batchgen.policy.base import CLUSTER_SLOTS, ENGINE_SLOTS, OrderPart
from batchgen.policy.presets import Policy
from batchgen.runtime.cluster import Advisor, Cluster
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine
from batchgen.runtime.rank import PageKeys, Rank
from batchgen.sequence import Table

MAX_PASSES = 4096
"""Longest step; any smaller limit gives the same decisions, so this only bounds array sizes."""

BODY = "body"
"""The reason with which a row ends whose body returned."""


class RuntimeBase:
    """State of the runtime, and the calls that its concerns make on each other."""

    def __init__(
        self,
        table: Table,
        plan: Plan,
        policy: Policy,
        *,
        reference: bool = False,
        page_keys: PageKeys | None = None,
        advisor: Advisor | None = None,
        body_factory: BodyFactory | None = None,
    ) -> None:
        self.table = table
        self.plan = plan
        self.policy = policy
        self.page_keys = page_keys
        self.reference = reference
        self.max_passes = 1 if reference else MAX_PASSES
        self.bodies = Bodies(table, body_factory)
        hosts = [Pool(f"host {node}", pages) for node, pages in enumerate(plan.host_pages)]
        no_host = Pool("no host", 0)
        order = policy["order"]
        self._fifo = fifo = type(order).key is OrderPart.key
        total_ready = [0]
        engines = []
        for spec in plan.engines:
            host = hosts[spec.node] if spec.node < len(hosts) else no_host
            engine = Engine(
                spec,
                table,
                host,
                boundary=plan.boundary,
                token_budget=plan.token_budget,
                max_num_seqs=plan.max_num_seqs,
                total_ready=total_ready,
            )
            engine.ranks = [
                Rank(
                    spec.engine,
                    index,
                    table,
                    hbm_pages=spec.hbm_pages,
                    page_tokens=plan.page_tokens,
                    host=host,
                    lane_key=None if fifo else (lambda row: order.key(table, row)),
                    page_keys=page_keys,
                )
                for index in range(spec.num_ranks)
            ]
            for slot in ENGINE_SLOTS:
                engine.states[slot] = policy[slot].new_state()
            engines.append(engine)
        self.cluster = Cluster(table, engines, hosts, advisor, total_ready)
        for slot in CLUSTER_SLOTS:
            self.cluster.states[slot] = policy[slot].new_state()
        self._streams = bool(getattr(policy["memory"], "streams", False))
        self._parts = [(policy[slot], slot) for slot in ENGINE_SLOTS]
        self._whole_engine = [
            (part, slot) for part, slot in self._parts if _overrides(part, "decide_engine")
        ]
        self._memory = policy["memory"]
        self._after_memory = [
            (part, slot)
            for part, slot in self._parts
            if slot in ("order", "admission", "batching") and _overrides(part, "decide")
        ]
        self._before_memory = [
            (part, slot)
            for part, slot in self._parts
            if slot in ("recovery", "phase") and _overrides(part, "decide")
        ]
        self._next_copy = 0
        self._copies: dict[int, tuple[str, Engine]] = {}
        self._learns = _overrides(policy["predictor"], "on_completion")
        self._tail_active = _overrides(policy["tail"], "layout")
        self._steals = _overrides(policy["placement"], "steal")

    # -- calls between concerns (each is defined in the file of its concern) -----------------------

    def _bequeath(self, engine: Engine) -> tuple[list[Engine], list[int]]:
        raise NotImplementedError

    def _copy(self, purpose: str, engine: Engine) -> int:
        raise NotImplementedError

    def _migrated(self, copy_id: int, arrived: bool, out: list[Action]) -> None:
        raise NotImplementedError

    def _hand_over(self, donor: Engine, out: list[Action]) -> None:
        raise NotImplementedError

    def _expect_pace(self, engine: Engine) -> None:
        raise NotImplementedError

    def _note_pace(self, engine: Engine) -> None:
        raise NotImplementedError

    def _decide(self, engine: Engine, out: list[Action]) -> None:
        raise NotImplementedError

    def _emit_copies(self, engine: Engine, draft: Draft, out: list[Action]) -> None:
        raise NotImplementedError

    def _end_row(self, row: int, code: str, out: list[Action]) -> None:
        raise NotImplementedError

    def _evacuate(self, engine: Engine, homeless: list[int], out: list[Action]) -> None:
        raise NotImplementedError

    def _fail_row(self, row: int, code: str, out: list[Action]) -> None:
        raise NotImplementedError

    def _feed(self, engine: Engine, out: list[Action]) -> None:
        raise NotImplementedError

    def _pay_pool_debt(self, engine: Engine) -> None:
        raise NotImplementedError

    def _return_host_lease(self, engine: Engine, used: int) -> None:
        raise NotImplementedError

    def _settle(self, rows: list[int], out: list[Action]) -> None:
        raise NotImplementedError

    def _try_switch(self, engine: Engine, draft: Draft, out: list[Action]) -> bool:
        raise NotImplementedError


def _overrides(part: Any, method: str) -> bool:
    """Whether the part's class defines the method itself (parts that do not care are not
    called)."""
    from batchgen.policy import base, batching, placement, predictor, tail

    neutral = (
        base.EnginePart,
        base.OrderPart,
        base.Part,
        batching.BatchingPart,
        placement.PlacementPart,
        predictor.PredictorPart,
        tail.TailPart,
    )
    for cls in type(part).__mro__:
        if method in vars(cls):
            return cls not in neutral
    return False
