"""Layouts for the long tail of a lockstep engine, and what they would cost. It decides nothing.

When few rows are left, most of a pass of a wide engine is the exchange between nodes. Two kinds of
layout help: attention spread over neighbouring ranks by tensor parallelism (experts stay where they
are), and the whole model gathered on one node, where the weights of that node's share of experts
come from host memory. The BatchGen paper allows the group inside a node or across nodes (section
2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from batchgen.cost.api import CostModel
from batchgen.cost.build import build_cost
from batchgen.cost.capacity import capacity
from batchgen.cost.efficiency import Efficiency
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout
from batchgen.memory.pool import pages_for
from batchgen.model import ModelSpec
from batchgen.runtime.advisor import HOME, Link, Offer, RankLoad

# A survivor is expected to grow to about twice its context (see policy.tail), so twice must fit.
GROWTH = 2
# Passes of a few rows need no room for spikes, so the tail may use more of the memory.
TAIL_MEMORY_FRACTION = 0.95


@dataclass(slots=True, kw_only=True)
class PartitionPlanner:
    """The tail layouts of one engine of `layout`; answers the tail part's cost questions.

    `home` is the cost of the engine as it is; `page_tokens` the size of its pages. fixed: weights
    or KV are on the host, where no other layout helps. A pipeline has none either: its batches
    share the GPUs. only_home: `home` is an operator profile, which says nothing of other layouts.
    Cost models are built once per layout and kept.
    """

    model: ModelSpec
    gpu: GpuSpec
    layout: Layout
    home: CostModel
    gpus_per_node: int
    expert_skew: float = 0.0
    page_tokens: int = 64
    efficiency: Efficiency | None = None
    costs: str = "roofline"
    fixed: bool = False
    only_home: bool = False
    _costs: dict[str, CostModel] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    def cost(self, name: str) -> CostModel:
        """The cost model of a layout named by `partition_ps`."""
        if name not in self._costs:
            self._costs[name] = build_cost(
                self.model,
                self.gpu,
                self._layouts()[name],
                expert_skew=self.expert_skew,
                gpus_per_node=self.gpus_per_node,
                efficiency=self.efficiency,
                costs=self.costs,
            )
        return self._costs[name]

    def _layouts(self) -> dict[str, Layout]:
        """Candidates by name, in a fixed order."""
        if self.fixed or self.only_home or self.layout.pp > 1:
            return {}
        ranks, node = self.layout.attention_dp, self.gpus_per_node
        found: dict[str, Layout] = {}
        width = 2
        while ranks % width == 0 and self.layout.tp * width <= node and self._splits(width):
            found[f"attention tp{self.layout.tp * width}"] = Layout(
                tp=self.layout.tp * width,
                attention_dp=ranks // width,
                ep=self.layout.ep,
                spare_experts=self.layout.spare_experts,
            )
            width *= 2
        if self.layout.gpus_per_engine > node and self._splits(node):
            ep = node if self.model.is_moe else 1
            found[f"one node tp{node}"] = Layout(tp=node, ep=ep)
        return found

    def tails(self) -> list[tuple[CostModel, int]]:
        """Cost and KV pages per rank of every layout that a tail may be offered."""
        layouts = self._layouts()
        sizes = {name: self._pages(layout) for name, layout in layouts.items()}
        return [(self.cost(name), pages) for name, pages in sizes.items() if pages]

    def _splits(self, width: int) -> bool:
        return self.model.num_heads % width == 0

    def _pages(self, layout: Layout) -> int:
        """KV pages of every rank of a layout; 0 when the model does not fit."""
        known = self._sizes.get(str(layout))
        if known is None:
            known = self._sizes[str(layout)] = self._count_pages(layout)
        return known

    def _count_pages(self, layout: Layout) -> int:
        try:
            sizes = capacity(
                self.model,
                self.gpu,
                layout,
                token_budget=512,
                max_num_seqs=64,
                memory_fraction=TAIL_MEMORY_FRACTION,
                page_tokens=self.page_tokens,
                gpus_per_node=self.gpus_per_node,
            )
        except UserError:
            return 0
        return sizes.hbm_pages

    def _fits(self, layout: Layout, contexts: Sequence[int]) -> bool:
        """Whether the ranks hold rows that grow to GROWTH times their contexts, each row on one
        rank, dealt out like the runtime does: the largest first, to the emptiest."""
        pages = self._pages(layout)
        used = [0] * layout.ranks_per_engine
        for context in sorted(contexts, reverse=True):
            rank = used.index(min(used))
            used[rank] += pages_for(GROWTH * context, self.page_tokens)
        return max(used, default=0) <= pages

    def partition(self, engine: int, contexts: Sequence[int], current: str) -> Offer:
        """The fastest layout for decoding rows of these KV lengths whose pools hold them."""
        now_ps = even_pass_ps(self.home if current == HOME else self.cost(current), contexts)
        best, then_ps = current, now_ps
        for name, layout in self._layouts().items():
            if not self._fits(layout, contexts):
                continue
            time_ps = even_pass_ps(self.cost(name), contexts)
            if time_ps < then_ps:
                best, then_ps = name, time_ps
        layout = self.layout if best == HOME else self._layouts()[best]
        return Offer(
            layout=best,
            num_ranks=layout.ranks_per_engine,
            hbm_pages=self._pages(layout),
            now_ps=now_ps,
            then_ps=then_ps,
            switch_ps=self.home.switch_ps(),
        )

    def expected_ps(self, engine: int, layout: str, loads: Sequence[RankLoad]) -> int:
        """One pass of exactly these loads on a healthy engine, in ps."""
        cost = self.home if layout == HOME else self.cost(layout)
        return cost.time_ps(loads)

    def copy_ps(self, tokens: int, link: Link) -> int:
        """KV of one row over a link, in ps."""
        return self.home.copy_ps(tokens, link)

    def recompute_ps(self, tokens: int) -> int:
        """Prefill of one row anew, in ps."""
        return self.home.recompute_ps(tokens)


def even_pass_ps(cost: CostModel, contexts: Sequence[int]) -> int:
    """One decode pass of rows with these KV lengths, dealt to the ranks longest first."""
    ranks = cost.num_ranks
    counts, read = [0] * ranks, [0] * ranks
    for index, context in enumerate(sorted(contexts, reverse=True)):
        counts[index % ranks] += 1
        read[index % ranks] += context + 1
    return cost.time_ps(
        [(count, read[rank], 0, 0, 0, count, 0) for rank, count in enumerate(counts)]
    )
