"""Admission parts: how many waiting rows get memory now. They do not cut prompts into chunks.

All of these are monotone: while nobody leaves, free pages only fall and budgets stay, so a blocked
head of the queue stays blocked. Their horizon is therefore unlimited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchgen.memory.pool import BOUNDARIES_AHEAD, FOREVER, pages_ahead, pages_for
from batchgen.policy.base import EnginePart, Part
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine


class FitsNow(EnginePart):
    """Admit in order while the whole prompt fits the free pages and the pass budget has room.

    Optimistic: growth is not reserved. No admission in a pass that preempted somebody, as in vLLM
    V1. `watermark` is a fraction of the pool that admission leaves free.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        watermark: float = 0.0

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        rank = draft.rank
        if draft.preempted or not rank.waiting:
            return
        budget, seats = view.token_budget, view.max_num_seqs - rank.num_resident
        reserve = int(self.config.watermark * rank.pool.size)
        while seats > 0 and rank.waiting and draft.planned_tokens < budget:
            row = rank.lane.peek()
            if row is None or rank.pages_to_admit(row) + reserve > draft.pages_left:
                return
            draft.admit(row)
            seats -= 1

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        # A preempted row may share more pages now than it owned, and fit again in the next pass.
        return 1 if draft.preempted and draft.rank.prefix is not None else FOREVER


class WorstCase(EnginePart):
    """Admit only rows whose prompt and whole output budget fit, and keep those pages reserved
    (Orca)."""

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        rank, table = draft.rank, draft.table
        seats = view.max_num_seqs - rank.num_resident
        while seats > 0 and rank.waiting:
            row = rank.lane.peek()
            if row is None:
                return
            worst = table.v_prompt[row] + table.v_budget[row]
            # A row whose worst case exceeds the pool may run alone: it may end before it is full.
            pages = min(pages_for(worst, rank.page_tokens), rank.pool.size)
            pages = max(pages, pages_for(table.known_tokens(row), rank.page_tokens))
            if pages > rank.pool.free:
                return
            draft.admit(row, reserve_pages=pages)
            seats -= 1

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER


class WholeBatch(WorstCase):
    """Static batching: take a batch, run it to its last row, only then take the next."""

    def new_state(self) -> dict[str, bool]:
        return {"open": True}

    def decide_engine(self, view: Engine, draft: Draft, state: Any) -> None:
        state["open"] = not (view.num_running or view.num_prefilling)
        if state["open"]:
            view.dirty.update(range(len(view.ranks)))

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        if state["open"]:
            super().decide(view, draft, state)


class LazyPages(EnginePart):
    """BatchGen's refill: active rows keep pages for `boundaries_ahead` boundaries, so many fit.

    Decode (at a boundary): restore suspended rows from the host, first in first out, to the rank
    with most free pages. Prefill: admit prompts; where HBM is full but the host is not, parked rows
    whose KV is on the host make room. Source: BatchGen paper, sections 5.2 and 5.3.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        boundaries_ahead: int = BOUNDARIES_AHEAD

    def _ahead(self, view: Engine) -> int:
        page_tokens = view.ranks[0].page_tokens
        return pages_ahead(view.boundary, self.config.boundaries_ahead, page_tokens)

    def decide_engine(self, view: Engine, draft: Draft, state: Any) -> None:
        if view.phase != "decode" or not view.ready:
            return
        ahead, table = self._ahead(view), draft.table
        room = {
            rank.index: rank.pool.free - ahead * (rank.num_resident + inbound)
            for rank, inbound in zip(view.ranks, _inbound_per_rank(view, draft), strict=True)
        }
        seats = {
            rank.index: view.max_num_seqs - rank.num_resident - inbound
            for rank, inbound in zip(view.ranks, _inbound_per_rank(view, draft), strict=True)
        }
        while view.ready:
            best = max(
                (index for index in room if seats[index] > 0),
                key=lambda index: (room[index], -index),
                default=None,
            )
            row = view.ready[0]
            if best is None:
                return
            pages = pages_for(table.v_computed[row], view.ranks[best].page_tokens)
            alone = not (view.num_running or draft.restored or view.inbound or view.num_parked)
            if pages + ahead > room[best] and not (alone and pages < view.ranks[best].pool.free):
                return
            view.ready.popleft()
            draft.restore(row, view.ranks[best], pages)
            room[best] -= pages + ahead
            seats[best] -= 1

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        if view.phase != "prefill":
            return
        rank, table = draft.rank, draft.table
        size, ahead = rank.page_tokens, self._ahead(view)
        has_host = rank.host.size > 0
        while rank.waiting and draft.planned_tokens < view.token_budget:
            row = rank.lane.peek()
            if row is None:
                return
            host_pages = pages_for(table.known_tokens(row), size) if has_host else 0
            if host_pages - table.v_host_pages[row] > rank.host.free:
                return
            pages = rank.pages_to_admit(row)
            if not has_host and rank.num_resident >= view.max_num_seqs:
                return
            while self._short(rank, pages, ahead) or rank.num_resident >= view.max_num_seqs:
                victim = self._spillable(draft)
                if victim is None:
                    break
                draft.spill(victim)
            if rank.num_resident >= view.max_num_seqs:
                return
            if rank.num_resident and self._short(rank, pages, ahead):
                return
            if pages > rank.pool.free:
                return
            draft.admit(row, host_pages=host_pages)

    @staticmethod
    def _short(rank: Any, pages: int, ahead: int) -> bool:
        return bool(rank.pool.free - pages < ahead * (rank.num_resident + 1))

    @staticmethod
    def _spillable(draft: Draft) -> int | None:
        """The newest parked row whose KV is whole on the host."""
        table = draft.table
        for row in reversed(draft.rank.parked):
            if table.v_host_valid[row] >= table.v_computed[row]:
                return row
        return None

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER  # asked at boundaries only, and there monotone like the others


def _inbound_per_rank(view: Engine, draft: Draft) -> list[int]:
    counts = [0] * len(view.ranks)
    for rows in (*view.inbound.values(), draft.restored):
        for _, rank in rows:
            counts[rank.index] += 1
    return counts
