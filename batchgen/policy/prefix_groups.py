"""Groups of rows with one level of sharing, from a prefix tree. It orders nothing.

Source: BatchLLM (arXiv 2412.03594), prefix clustering: a subtree leaves the group above it, with a
copy of that prefix in front, when it saves more tokens than the copy costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchgen.policy.prefix_tree import ROOT, Node

Group = tuple[int, list[int]]
"""(tokens of the shared prefix, rows)."""


def groups(nodes: Sequence[Node]) -> list[Group]:
    """All rows, each in one group."""
    below: list[list[Group]] = [[] for _ in nodes]
    for number in range(len(nodes) - 1, ROOT, -1):
        node = nodes[number]
        rest = list(node.rows)
        found: list[Group] = []
        for end, rows in below[number]:
            if (len(rows) - 1) * (end - node.end) > node.tokens:
                found.append((end, rows))
            else:
                rest += rows
        if rest:
            found.insert(0, (node.end, rest))
        below[node.parent] += found
    return [*below[ROOT], *[(0, [row]) for row in nodes[ROOT].rows]]


def computed_tokens(found: Sequence[Group], prompts: Sequence[int]) -> int:
    """Prompt tokens that are computed when a group computes its prefix once."""
    return sum(prefix + sum(prompts[row] - prefix for row in rows) for prefix, rows in found)
