"""One rank of an engine: its pool, its rows and their page books. Bookkeeping only, no decisions.

Row sets of a rank, each an insertion-ordered dict used as a set:
  running     decode one token in every pass (lazy columns, see batchgen.sequence)
  prefilling  admitted, prompt not complete; pages for the whole prompt are leased at admission
  parked      resident but paused (between phases, or restored and waiting for a boundary)
  waiting     in a lane, without pages
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from batchgen.memory.pool import GrowthHistogram, Pool, pages_for
from batchgen.memory.prefix import PrefixIndex
from batchgen.runtime.lane import Lane
from batchgen.sequence import Phase, Status, Table

PageKeys = Callable[[int], Sequence[int]]
"""row -> chained keys of its full prompt pages (empty when the row shares nothing)."""


class Rank:
    """Counts of one rank. `q` arguments are the engine's pass counter."""

    __slots__ = (
        "engine_id",
        "growth",
        "host",
        "index",
        "lane",
        "limit_q",
        "page_keys",
        "page_tokens",
        "parked",
        "pool",
        "prefilling",
        "prefix",
        "running",
        "streaming",
        "table",
        "waiting",
    )

    def __init__(
        self,
        engine_id: int,
        index: int,
        table: Table,
        *,
        hbm_pages: int,
        page_tokens: int,
        host: Pool,
        lane_key: Callable[[int], int] | None,
        page_keys: PageKeys | None,
    ) -> None:
        self.engine_id = engine_id
        self.index = index
        self.table = table
        self.pool = Pool(f"hbm of engine {engine_id} rank {index}", hbm_pages)
        self.host = host
        self.page_tokens = page_tokens
        self.running: dict[int, None] = {}
        self.prefilling: dict[int, None] = {}
        self.parked: dict[int, None] = {}
        self.growth = GrowthHistogram(page_tokens)
        self.lane = Lane(self._waits_here, lane_key)
        self.waiting = 0
        self.prefix = PrefixIndex() if page_keys is not None else None
        self.page_keys = page_keys
        self.streaming = False  # closed pages of running rows go to the host
        self.limit_q = 0  # the composition of this rank stands until this pass

    def _waits_here(self, row: int) -> bool:
        table = self.table
        return (
            table.v_engine[row] == self.engine_id
            and table.v_rank[row] == self.index
            and table.v_status[row] in (Status.INIT, Status.INACTIVE)
            and table.v_phase[row] == Phase.PREFILL
            and table.v_hbm_pages[row] == 0
        )

    @property
    def num_resident(self) -> int:
        """Rows that hold HBM pages and may be in a step."""
        return len(self.running) + len(self.prefilling) + len(self.parked)

    # -- waiting ------------------------------------------------------------------------------

    def enqueue(self, row: int, *, front: bool = False) -> None:
        """The row waits in this rank's lane."""
        self.waiting += 1
        if front:
            self.lane.push_front(row)
        else:
            self.lane.push(row)

    def hits(self, row: int) -> int:
        """Leading pages of the row's prompt that are already computed here.

        At least one token is always left to compute, since the last logits are needed.
        """
        if self.prefix is None or self.page_keys is None:
            return 0
        keys = self.page_keys(row)
        most = (self.table.known_tokens(row) - 1) // self.page_tokens
        return self.prefix.match(keys[:most])

    def pages_to_admit(self, row: int) -> int:
        """Pool pages that admitting the row costs now: its whole prompt, less shared leased
        pages."""
        total = pages_for(self.table.known_tokens(row), self.page_tokens)
        hits = self.hits(row)
        if not hits or self.prefix is None or self.page_keys is None:
            return total
        return total - hits + self.prefix.idle_among(self.page_keys(row)[:hits])

    def admit(self, row: int, *, reserve_pages: int = 0) -> None:
        """Take the lane's next row into `prefilling` and lease its prompt (or `reserve_pages`)."""
        table = self.table
        self.waiting -= 1
        total = pages_for(table.known_tokens(row), self.page_tokens)
        hits = 0 if reserve_pages else self.hits(row)
        newly = 0
        if hits and self.prefix is not None and self.page_keys is not None:
            newly = self.prefix.lease(self.page_keys(row)[:hits])
        pages = max(total, reserve_pages)
        self.pool.lease(pages - hits + newly)
        table.v_hbm_pages[row] = pages
        table.v_reserved[row] = reserve_pages
        table.v_shared[row] = hits
        table.v_computed[row] = hits * self.page_tokens
        table.move(row, Status.ACTIVE)
        self.prefilling[row] = None
        self.shrink_cache()

    def shrink_cache(self) -> list[int]:
        """Give cached prefix pages back to the free space that leases need."""
        if self.prefix is None or not self.prefix.num_cached:
            return []
        return self.prefix.shrink(self.pool.free)

    def forget_prefixes(self) -> None:
        """The memory of the device is gone, with every cached page."""
        if self.prefix is not None:
            self.prefix.shrink(0)

    # -- running ------------------------------------------------------------------------------

    def join(self, row: int, q: int) -> None:
        """The row decodes from pass q on."""
        table = self.table
        offset = table.v_computed[row] - q
        table.v_offset[row] = offset
        self.running[row] = None
        if not table.v_reserved[row]:
            self.growth.add(offset)

    def leave(self, row: int, q: int) -> None:
        """The row stops decoding before pass q; its lazy columns become real."""
        table = self.table
        del self.running[row]
        offset = table.v_offset[row]
        computed = offset + q
        table.v_computed[row] = computed
        table.v_produced[row] = computed - table.v_prompt[row] + 1
        if not table.v_reserved[row]:
            self.growth.remove(offset)
            table.v_hbm_pages[row] = pages_for(computed, self.page_tokens)
        if self.streaming:
            table.v_host_pages[row] = pages_for(computed, self.page_tokens)
            closed = computed - computed % self.page_tokens
            if closed > table.v_host_valid[row]:
                table.v_host_valid[row] = closed

    def complete_prompt(self, row: int, q: int) -> None:
        """The row's last chunk ran in the pass before q: it has a new token and decodes."""
        table = self.table
        del self.prefilling[row]
        table.v_computed[row] = table.known_tokens(row)
        table.v_produced[row] += 1
        table.v_phase[row] = Phase.DECODE
        if self.prefix is not None and self.page_keys is not None:
            full = table.v_prompt[row] // self.page_tokens
            keys = self.page_keys(row)[table.v_shared[row] : full]
            table.v_shared[row] += self.prefix.publish(keys)
        self.join(row, q)

    def advance(self, q: int, passes: int) -> int:
        """Account for `passes` passes from q on; returns the pages that they needed."""
        if not self.growth.num_rows:
            return 0
        pages = self.growth.growth(q, passes)
        if pages:
            self.pool.lease(pages)
            self.shrink_cache()
        return pages

    # -- letting go ---------------------------------------------------------------------------

    def release_hbm(self, row: int) -> None:
        """Give back every HBM page of a row that is in no set any more."""
        table = self.table
        pages = table.v_hbm_pages[row] - table.v_shared[row]
        shared = table.v_shared[row]
        if shared and self.prefix is not None and self.page_keys is not None:
            pages += self.prefix.release(self.page_keys(row)[:shared])
            table.v_shared[row] = 0
        self.pool.lease(-pages)
        table.v_hbm_pages[row] = 0
        table.v_reserved[row] = 0

    def release_host(self, row: int) -> None:
        """Give back the row's host pages and forget its checkpoint."""
        table = self.table
        if table.v_host_pages[row]:
            self.host.lease(-table.v_host_pages[row])
            table.v_host_pages[row] = 0
        table.v_host_valid[row] = 0

    def forget_kv(self, row: int) -> None:
        """The row's KV is gone everywhere; it has to be prefilled again, with what it produced."""
        table = self.table
        table.v_recomputed[row] += table.v_computed[row]
        table.v_computed[row] = 0
        table.v_phase[row] = Phase.PREFILL

    def stop_streaming(self, q: int) -> None:
        """The host has no room: running rows keep the checkpoint that they have now.

        Streaming starts again when the rank has drained (holes in a checkpoint are never made).
        """
        table = self.table
        for row in self.running:
            computed = table.v_offset[row] + q
            table.v_host_pages[row] = pages_for(computed, self.page_tokens)
            closed = computed - computed % self.page_tokens
            if closed > table.v_host_valid[row]:
                table.v_host_valid[row] = closed
        self.streaming = False
