"""The forward schedule: which modules of a layer run on what, in which order, by the plan.

One period is one layer: attention in sub-batches of B_attn rows, whose hidden states are parked,
then the MLP (experts, or the dense one) on the union, in groups of B_moe tokens. A backend runs
these very nodes; a cost model adds them up. It decides nothing and times nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ATTENTION, MLP = "attention", "mlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One module on one part of the pass.

    `rows` [begin, end) are the segments of an attention node (of an MLP node: (0, 0), it knows no
    rows); `tokens` [begin, end) the flat tokens that it reads and writes; `needs` the numbers of
    the nodes that come before; `resource` what it occupies.
    """

    module: str
    rows: tuple[int, int]
    tokens: tuple[int, int]
    needs: tuple[int, ...] = ()
    resource: str = "compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The nodes of one layer in launch order; each layer runs them after the one before."""

    nodes: tuple[Node, ...]

    @property
    def whole(self) -> bool:
        """Whether every module runs once on everything: nothing is parked."""
        return len(self.nodes) == 2

    def duration(self, cost: Callable[[Node], float]) -> float:
        """Time of the period: a resource serves its nodes one after another in launch order, and a
        node begins when all that it needs have ended."""
        ends: list[float] = []
        free: dict[str, float] = {}
        for node in self.nodes:
            begin = max((ends[i] for i in node.needs), default=0.0)
            begin = max(begin, free.get(node.resource, 0.0))
            ends.append(begin + cost(node))
            free[node.resource] = ends[-1]
        return max(ends, default=0.0)


def forward_period(lengths: Sequence[int], *, b_attn: int = 0, b_moe: int = 0) -> Period:
    """The period of a pass whose segments have `lengths` tokens [S], in their order.

    b_attn: most rows of an attention sub-batch; b_moe: most tokens of a group of the MLP; 0: all.
    Raises ValueError for a pass without tokens and for sizes below 0.
    """
    if not lengths or min(lengths) < 1 or b_attn < 0 or b_moe < 0:
        raise ValueError(f"no period for {len(lengths)} segments, {b_attn} rows, {b_moe} tokens")
    nodes: list[Node] = []
    rows = b_attn or len(lengths)
    first = 0
    for begin in range(0, len(lengths), rows):
        end = min(begin + rows, len(lengths))
        last = first + sum(lengths[begin:end])
        nodes.append(Node(module=ATTENTION, rows=(begin, end), tokens=(first, last)))
        first = last
    attention = list(nodes)
    tokens = b_moe or first
    for begin in range(0, first, tokens):
        end = min(begin + tokens, first)
        needs = tuple(
            number
            for number, node in enumerate(attention)
            if node.tokens[0] < end and begin < node.tokens[1]
        )
        nodes.append(Node(module=MLP, rows=(0, 0), tokens=(begin, end), needs=needs))
    return Period(nodes=tuple(nodes))
