"""Memory parts: what gives way when the next passes need more pages than are free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from batchgen.memory.pool import BOUNDARIES_AHEAD, FOREVER
from batchgen.policy.base import EnginePart, Part
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine


class NothingYields(EnginePart):
    """Nobody gives way: admission reserved the worst case.

    A row that was let in alone although its worst case exceeds the pool ends when the pool is full.
    """

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        if self._room(draft) == 0:
            draft.fail(next(iter(draft.rank.running)), "capacity")

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return self._room(draft)

    @staticmethod
    def _room(draft: Draft) -> int:
        """Passes until the only row that may outgrow its reservation has filled it."""
        rank, table = draft.rank, draft.table
        if len(rank.running) != 1:
            return FOREVER  # a row whose worst case exceeds the pool runs alone
        row = next(iter(rank.running))
        reserved_tokens = table.v_reserved[row] * rank.page_tokens
        if reserved_tokens >= table.v_prompt[row] + table.v_budget[row]:
            return FOREVER
        return reserved_tokens - (table.v_offset[row] + draft.q)


class RecomputeNewest(EnginePart):
    """The newest row loses its pages and is prefilled again later (vLLM)."""

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        rank = draft.rank
        while rank.growth.growth(draft.q, 1) > rank.pool.free:
            if rank.prefilling:
                draft.recompute(next(reversed(rank.prefilling)))
            elif len(rank.running) > 1:
                draft.recompute(next(reversed(rank.running)))
            else:
                draft.fail(next(iter(rank.running)), "capacity")

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER  # nothing happens before the pages run out, and that limits the step


class SuspendMostDecoded(EnginePart):
    """BatchGen's extension: rows near their page limit get pages, or the most decoded row yields.

    Pages of a suspended row come free only when its last page is on the host, so the part looks
    `boundaries_ahead` boundaries ahead and yields before the next boundary is in danger.
    """

    streams: ClassVar[bool] = True  # closed pages go to the host while rows decode

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        boundaries_ahead: int = BOUNDARIES_AHEAD

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        rank, table, q = draft.rank, draft.table, draft.q
        if view.phase != "decode" or not rank.running:
            return
        need = rank.growth.growth(q, view.boundary * self.config.boundaries_ahead)
        free = rank.pool.free + self._coming_free(view, rank.index)
        if need <= free:
            return
        victims = sorted(
            rank.running, key=lambda row: (table.v_offset[row] - table.v_prompt[row], row)
        )
        while need > free and len(victims) > 1:
            row = victims.pop()  # most decoded; ties by the larger row number
            offset = table.v_offset[row]
            free += -(-(offset + q) // rank.page_tokens)
            draft.suspend(row)
            need = rank.growth.growth(q, view.boundary * self.config.boundaries_ahead)
        alone = len(rank.running) == 1 and rank.num_resident == 1
        if alone and free == rank.pool.free and not rank.growth.passes_that_fit(q, rank.pool.free):
            draft.fail(victims[0], "capacity")

    @staticmethod
    def _coming_free(view: Engine, index: int) -> int:
        table = view.table
        return sum(
            table.v_hbm_pages[row]
            for rows in view.outbound.values()
            for row in rows
            if table.v_rank[row] == index
        )

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER  # asked at boundaries only
