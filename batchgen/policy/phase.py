"""Phase parts: when an engine changes between prefill and decode. They admit nobody themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchgen.memory.pool import BOUNDARIES_AHEAD, FOREVER, pages_ahead, pages_for
from batchgen.policy.base import EnginePart, Part
from batchgen.runtime.draft import Draft
from batchgen.runtime.engine import Engine


class Mixed(EnginePart):
    """No phases: every pass may hold prompts and decodes."""

    def decide_engine(self, view: Engine, draft: Draft, state: Any) -> None:
        view.phase = "mixed"

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER


class RefillNode(EnginePart):
    """BatchGen's refill-node: decode until under-used, then all ranks prefill together.

    Prefill starts when rows wait, nothing suspended is left to refill with, and at least
    `refill_free` of the HBM pages and of the seats are free (or nothing runs). It ends when no rank
    can take another prompt and keep pages for `boundaries_ahead` boundaries. Rows that decode are
    parked meanwhile. Decisions fall on boundaries of `Plan.boundary` decode passes and on every
    prefill pass. Source: BatchGen paper, sections 2.6 and 5.3.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        refill_free: float = 0.2
        boundaries_ahead: int = BOUNDARIES_AHEAD

    def decide_engine(self, view: Engine, draft: Draft, state: Any) -> None:
        view.dirty.update(range(len(view.ranks)))
        prefill = view.num_prefilling > 0
        if (
            not prefill
            and view.num_waiting
            and any(self._can_admit(view, rank) for rank in view.ranks)
        ):
            idle = not (view.num_running or view.num_parked or view.ready or view.inbound)
            starved = not view.ready and not view.inbound
            seats = view.max_num_seqs * len(view.ranks)
            free_seats = 1 - (view.num_running + view.num_parked) / seats
            under_used = min(view.free_fraction, free_seats) >= self.config.refill_free
            prefill = view.phase == "prefill" or idle or (starved and under_used)
        view.phase = "prefill" if prefill else "decode"
        for rank in view.ranks:
            draft.rank = rank
            if prefill:
                for row in list(rank.running):
                    draft.park(row)
            else:
                for row in list(rank.parked):
                    draft.resume(row)
        view.decide_q = view.q if prefill else view.q + view.boundary

    def _can_admit(self, view: Engine, rank: Any) -> bool:
        row = rank.lane.peek() if rank.waiting else None
        if row is None:
            return False
        table = rank.table
        if rank.host.size:
            host = pages_for(table.known_tokens(row), rank.page_tokens) - table.v_host_pages[row]
            if host > rank.host.free:
                return False
        elif rank.num_resident >= view.max_num_seqs:
            return False
        pages = rank.pages_to_admit(row)
        spill = sum(
            table.v_hbm_pages[other]
            for other in rank.parked
            if table.v_host_valid[other] >= table.v_computed[other]
        )
        # A row that has the rank to itself needs no pages ahead of others.
        each = pages_ahead(view.boundary, self.config.boundaries_ahead, rank.page_tokens)
        ahead = each * (rank.num_resident + 1) if rank.num_resident else 0
        return bool(pages + ahead <= rank.pool.free + spill)

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        return FOREVER  # asked at boundaries only
