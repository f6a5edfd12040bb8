"""Rows by compute density over their prefix tree: expected outputs, the sort by layers, outliers
that leave their subtree. Plain numbers; it knows no rank and no pass.

Source: BlendServe (arXiv 2411.16102), sections 4.1 and 5.1 to 5.2. Compute is counted in tokens
through the layers, memory in KV tokens read. The ratio of the two rates of a machine scales every
density alike, and neither the order nor the scanner's split depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from batchgen.policy.arrangement import Unit
from batchgen.policy.prefix_tree import ROOT, Node

Work = tuple[float, float]
"""(compute, memory)."""


def row_work(prompt: float, output: float, quadratic_tokens: float, shared: float = 0.0) -> Work:
    """Of a row of which `shared` leading tokens are computed elsewhere: its tokens, and attention
    of the prompt, which equals the linear layers at `quadratic_tokens`; sum of its contexts."""
    compute = prompt - shared + output + (prompt**2 - shared**2) / quadratic_tokens
    return compute, prompt * output + output**2 / 2


def density(work: Work) -> float:
    compute, memory = work
    return compute / memory if memory > 0 else inf


def expected_outputs(nodes: Sequence[Node], known: dict[int, float], initial: float) -> list[float]:
    """Per node, what its rows without a known output are expected to produce: the mean of the
    sampled ones among them, else of those below, else what is expected of its siblings' parent;
    a root that knows none: `initial`.

    known: outputs of sampled rows (some of the rows of the nodes).
    """
    total = [0.0] * len(nodes)
    count = [0] * len(nodes)
    own: list[float | None] = []
    for number, node in enumerate(nodes):
        seen = [known[row] for row in node.rows if row in known]
        own.append(sum(seen) / len(seen) if seen else None)
        total[number], count[number] = sum(seen), len(seen)
    for number in range(len(nodes) - 1, ROOT, -1):
        parent = nodes[number].parent
        total[parent] += total[number]
        count[parent] += count[number]
    found: list[float] = []
    for number, node in enumerate(nodes):
        mean = own[number]
        if mean is None and count[number]:
            mean = total[number] / count[number]
        if mean is None:
            mean = found[node.parent] if node.parent >= 0 else initial
        found.append(mean)
    return found


def node_works(
    nodes: Sequence[Node], works: dict[int, Work], quadratic_tokens: float
) -> list[Work]:
    """Per node: its segment once, and all rows below (`works`: less what they share)."""
    sums = [[0.0, 0.0] for _ in nodes]
    for number in range(len(nodes) - 1, -1, -1):
        node, mine = nodes[number], sums[number]
        mine[0] += node.tokens + (node.end**2 - node.begin**2) / quadratic_tokens
        for row in node.rows:
            compute, memory = works[row]
            mine[0] += compute
            mine[1] += memory
        if node.parent >= 0:
            sums[node.parent][0] += mine[0]
            sums[node.parent][1] += mine[1]
    return [(compute, memory) for compute, memory in sums]


def sorted_rows(
    nodes: Sequence[Node], start: int, works: dict[int, Work], sums: Sequence[Work]
) -> list[int]:
    """Rows below a node, depth first, the densest of siblings first (rows and nodes alike)."""
    found: list[int] = []
    stack = [(start, -1)]
    while stack:
        number, row = stack.pop()
        if row >= 0:
            found.append(row)
            continue
        node = nodes[number]
        items = [(density(sums[child]), -child, child, -1) for child in node.children]
        items += [(density(works[one]), -one, -1, one) for one in node.rows]
        items.sort()
        stack += [(child, one) for _, _, child, one in items]
    return found


Piece = tuple[Work, list[int]]
"""Rows that are scheduled as one, and their work."""


def pieces(
    nodes: Sequence[Node],
    works: dict[int, Work],
    quadratic_tokens: float,
    budget_tokens: float,
) -> list[Piece]:
    """The subtrees of the root and its own rows, densest first; rows whose density lies beyond that
    of a neighbouring subtree become pieces of their own, those farthest out first, as long as the
    prefixes that this computes again stay within `budget_tokens`."""
    sums = node_works(nodes, works, quadratic_tokens)
    root = nodes[ROOT]
    found: list[Piece] = [(works[row], [row]) for row in root.rows]
    trees = [(sums[child], sorted_rows(nodes, child, works, sums)) for child in root.children]
    found += [tree for tree in trees if tree[1]]  # (samples that have ended leave empty ones)
    found.sort(key=lambda one: (-density(one[0]), one[1][0]))
    shared = {row: node.end for node in nodes for row in node.rows}
    outliers: list[tuple[float, int, int]] = []  # (how far out, row, piece)
    for at, (work, rows) in enumerate(found):
        if len(rows) < 2:
            continue
        above = density(found[at - 1][0]) if at else inf
        below = density(found[at + 1][0]) if at + 1 < len(found) else 0.0
        mine = density(work)
        for row in rows:
            own = density(works[row])
            if own > above or own < below:
                outliers.append((max(own / mine, mine / own), row, at))
    outliers.sort(key=lambda one: (-one[0], one[1]))
    gone: dict[int, int] = {}
    left = budget_tokens
    for _, row, at in outliers:
        if shared[row] <= left:
            left -= shared[row]
            gone[row] = at
    if not gone:
        return found
    rest: list[Piece] = []
    for work, rows in found:
        kept = [row for row in rows if row not in gone]
        if len(kept) < len(rows):
            compute = sum(works[row][0] for row in rows if row in gone)
            memory = sum(works[row][1] for row in rows if row in gone)
            work = (max(work[0] - compute, 0.0), max(work[1] - memory, 0.0))
        if kept:
            rest.append((work, kept))
    for row in gone:
        compute, memory = works[row]
        prefix = shared[row]
        rest.append(((compute + prefix + prefix**2 / quadratic_tokens, memory), [row]))
    rest.sort(key=lambda one: (-density(one[0]), one[1][0]))
    return rest


def units_of(
    found: Sequence[Piece],
    least_rows: int,
    prompts: Callable[[int], int],
    outputs: dict[int, float],
) -> dict[int, Unit]:
    """What a scanner sees of each row: the density and mean lengths of its piece, small pieces side
    by side taken together until they hold `least_rows`."""
    units: dict[int, Unit] = {}
    group: list[int] = []
    compute = memory = 0.0
    for number, (work, rows) in enumerate(found):
        group += rows
        compute, memory = compute + work[0], memory + work[1]
        if len(group) >= least_rows or number + 1 == len(found):
            unit = Unit(
                density=density((compute, memory)),
                prompt_tokens=sum(map(prompts, group)) / len(group),
                output_tokens=sum(outputs[row] for row in group) / len(group),
            )
            units.update(dict.fromkeys(group, unit))
            group, compute, memory = [], 0.0, 0.0
    return units
