"""One rank of an engine: its pages, its rows and their books. Bookkeeping only, no decisions.

Sets of rows, each an insertion-ordered dict:
  running     decode one token in every decode pass (lazy columns, see batchgen.sequence)
  prefilling  pages for all known tokens are leased, chunks run
  held        resident, in no pass: stalled, extending, sleeping, frozen, or left in doubt
  dead        ended rows of a static batch that keep their place
and `lanes`, rows that wait without pages. `used` is stated as of the decision's pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from batchgen.memory.pool import GrowthHistogram, pages_for
from batchgen.memory.prefix import PrefixIndex
from batchgen.runtime.engine.deck import Deck
from batchgen.runtime.engine.lane import Lane
from batchgen.sequence import Status, Table

DECODE = int(Status.DECODE)

PageKeys = Callable[[int], Sequence[int]]
"""row -> chained keys of its full prompt pages (empty when the row shares nothing)."""


class Rank:
    """Counts of one rank. k: its decode clock, the passes in which its rows decoded; paused: in the
    next one they do not, because it computes prompts.

    inbound: rows whose pages are leased here while their KV is being copied. outbound_pages: pages
    that come free when copies to the host land. prompt_left: tokens of `prefilling` rows without
    KV. gave: somebody gave way in this decision. debt: pages that the backend wants back.
    """

    __slots__ = (
        "dead",
        "debt",
        "gave",
        "growth",
        "held",
        "inbound",
        "index",
        "k",
        "lane_growth",
        "lane_used",
        "lanes",
        "offsets",
        "outbound_pages",
        "page_keys",
        "page_tokens",
        "paused",
        "prefilling",
        "prefix",
        "prompt_left",
        "running",
        "size",
        "table",
        "used",
        "waiting",
    )

    def __init__(
        self,
        index: int,
        table: Table,
        *,
        size: int,
        page_tokens: int,
        lanes: list[Lane],
        page_keys: PageKeys | None,
    ) -> None:
        self.index = index
        self.table = table
        self.size = size
        self.page_tokens = page_tokens
        self.lanes = lanes
        self.page_keys = page_keys
        self.prefix = PrefixIndex() if page_keys is not None else None
        self.debt = 0
        self.waiting = 0
        self.k = 0
        self.reset()

    def reset(self) -> None:
        """Nothing is resident (any more); lanes stay."""
        self.used = 0
        self.growth = GrowthHistogram(self.page_tokens)
        self.running: dict[int, None] = {}
        self.offsets = 0  # of `running`, summed
        self.prefilling: dict[int, None] = {}
        self.held: dict[int, None] = {}
        self.dead: dict[int, None] = {}
        self.inbound = 0
        self.outbound_pages = 0
        self.prompt_left = 0
        self.gave = self.paused = False
        several = len(self.lanes) if len(self.lanes) > 1 else 0
        self.lane_used = [0] * several
        self.lane_growth = [GrowthHistogram(self.page_tokens) for _ in range(several)]
        if self.prefix is not None:
            self.prefix = PrefixIndex()

    @property
    def free(self) -> int:
        return self.size - self.used

    @property
    def num_resident(self) -> int:
        """Rows with pages here, or pages leased for them."""
        return len(self.running) + len(self.prefilling) + len(self.held) + self.inbound

    @property
    def num_seated(self) -> int:
        """Rows that have a place here: residents, and the dead of a static batch."""
        return (
            len(self.running)
            + len(self.prefilling)
            + len(self.held)
            + self.inbound
            + len(self.dead)
        )

    def planned_work(self) -> tuple[int, int]:
        """(tokens to compute, KV tokens to read) of rows that wait or prefill, as the plan of the
        order part has them; nothing without such a plan. Admitting a row does not change it."""
        lane = self.lanes[0]
        if not isinstance(lane, Deck):
            return 0, 0
        compute, read = lane.work()
        for row in self.prefilling:
            if row in lane.works:
                mine = lane.works[row]
                compute, read = compute + mine[0], read + mine[1]
        return compute, read

    # -- pages ------------------------------------------------------------------------------------

    def lease(self, row: int, pages: int) -> None:
        """`pages` more for the row."""
        self.used += pages
        self.table.v_pages[row] += pages
        if self.lane_used:
            self.lane_used[self.table.v_lane[row]] += pages

    def advance(self, passes: int) -> None:
        """Its rows decode in the next `passes` passes."""
        k, growth = self.k, self.growth
        self.k = k + passes
        if not growth.num_rows:
            return
        self.used += (
            growth.counts[k % self.page_tokens] if passes == 1 else growth.growth(k, passes)
        )
        for lane, part in enumerate(self.lane_growth):
            self.lane_used[lane] += part.growth(k, passes)

    def release(self, row: int) -> None:
        """Give back every page of a row that is in no set any more; its column is not lazy."""
        table = self.table
        pages = table.v_pages[row]
        if self.lane_used:
            self.lane_used[table.v_lane[row]] -= pages
        if self.prefix is not None and table.v_shared[row]:
            assert self.page_keys is not None
            shared = table.v_shared[row]
            pages -= shared - self.prefix.release(self.page_keys(row)[:shared])
            table.v_shared[row] = 0
        self.used -= pages
        table.v_pages[row] = 0
        table.v_reserved[row] = 0

    # -- the running set --------------------------------------------------------------------------

    def join(self, row: int) -> None:
        """The row decodes from the next decode pass on."""
        table = self.table
        offset = table.v_computed[row] - self.k
        table.v_offset[row] = offset
        table.v_status[row] = DECODE
        self.running[row] = None
        self.offsets += offset
        if not table.v_reserved[row]:
            growth = self.growth
            growth.counts[-offset % growth.page_tokens] += 1
            growth.num_rows += 1
            if self.lane_growth:
                self.lane_growth[table.v_lane[row]].add(offset)

    def unjoin(self, row: int) -> None:
        """The row decodes no more; its lazy columns become real."""
        table = self.table
        del self.running[row]
        offset = table.v_offset[row]
        self.offsets -= offset
        computed = offset + self.k
        table.v_computed[row] = computed
        table.v_produced[row] = computed - table.v_prompt[row] + 1
        if not table.v_reserved[row]:
            growth = self.growth
            growth.counts[-offset % growth.page_tokens] -= 1
            growth.num_rows -= 1
            table.v_pages[row] = -(-computed // growth.page_tokens)
            if self.lane_growth:
                self.lane_growth[table.v_lane[row]].remove(offset)

    def trim(self, row: int, computed: int) -> None:
        """The row, in no set, has KV for `computed` tokens only: give back pages behind it."""
        table = self.table
        table.v_computed[row] = computed
        if table.v_reserved[row]:
            return
        spare = table.v_pages[row] - pages_for(computed, self.page_tokens)
        if spare > 0:
            self.used -= spare
            table.v_pages[row] -= spare
            if self.lane_used:
                self.lane_used[table.v_lane[row]] -= spare

    # -- shared prefixes --------------------------------------------------------------------------

    def hits(self, row: int) -> int:
        """Leading pages of the row's prompt that are published here.

        At least one token is always left to compute, since the last logits are needed.
        """
        if self.prefix is None or self.page_keys is None:
            return 0
        keys = self.page_keys(row)
        most = (self.table.known_tokens(row) - 1) // self.page_tokens
        return self.prefix.match(keys[:most])

    def new_pages(self, row: int, pages: int, hits: int) -> int:
        """Pages of the pool that a row of `pages` pages takes, the first `hits` of them shared."""
        if not hits:
            return pages
        assert self.prefix is not None
        assert self.page_keys is not None
        return pages - hits + self.prefix.idle_among(self.page_keys(row)[:hits])

    def adopt(self, row: int, hits: int) -> None:
        """The row shares its first pages; they count in its `pages` already."""
        table = self.table
        assert self.prefix is not None
        assert self.page_keys is not None
        newly = self.prefix.lease(self.page_keys(row)[:hits])
        self.used -= hits - newly
        table.v_shared[row] = hits
        table.v_computed[row] = hits * self.page_tokens

    def publish(self, row: int, tokens: int) -> tuple[int, int]:
        """The row's first `tokens` tokens are scheduled; returns (first, count) of the pages that
        became known by it."""
        table = self.table
        assert self.prefix is not None
        assert self.page_keys is not None
        first = table.v_shared[row]
        keys = self.page_keys(row)[first : tokens // self.page_tokens]
        count = self.prefix.publish(keys, row, first) if keys else 0
        table.v_shared[row] = first + count
        return first, count
