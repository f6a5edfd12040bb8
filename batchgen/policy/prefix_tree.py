"""The compressed trie of the page keys of waiting rows: inner nodes are shared pages, rows hang
where their shared pages end. It knows no lengths of outputs and no order but depth first.

Keys are chained (a key names all tokens up to its page), so equal keys mean equal prefixes, and how
often a key occurs never grows along a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

ROOT = 0


@dataclass(slots=True)
class Node:
    """`begin` to `end`: the tokens of its own segment, counted from the start of a prompt. rows:
    those whose shared pages end here. children: numbers of nodes, in the order of their coming."""

    parent: int
    begin: int
    end: int
    rows: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.end - self.begin


def build(
    rows: Sequence[int], keys: Callable[[int], Sequence[int]], page_tokens: int
) -> list[Node]:
    """Nodes in an order in which parents come first; the first is the root, without tokens."""
    chains = [keys(row) for row in rows]
    count: Counter[int] = Counter()
    for chain in chains:
        count.update(chain)
    pages: dict[int, tuple[int, int]] = {}  # shared key -> (key before, its page), by coming
    ending: dict[int, list[int]] = {}  # last shared key -> rows
    loose: list[int] = []
    for row, chain in zip(rows, chains, strict=True):
        shared = _shared(chain, count)
        if not shared:
            loose.append(row)
            continue
        last = chain[shared - 1]
        if last not in ending:
            ending[last] = []
            at = shared - 1
            new = []
            while at >= 0 and chain[at] not in pages:
                new.append(at)
                at -= 1
            for place in reversed(new):
                pages[chain[place]] = (chain[place - 1] if place else -1, place)
        ending[last].append(row)
    below: dict[int, list[int]] = {}
    first: list[int] = []
    for key, (before, place) in pages.items():
        (below.setdefault(before, []) if place else first).append(key)
    nodes = [Node(parent=-1, begin=0, end=0, rows=loose)]
    todo = [(ROOT, key) for key in first]
    for parent, key in todo:  # grows meanwhile
        begin, tail = pages[key][1], key
        while tail not in ending and len(below.get(tail, ())) == 1:
            (tail,) = below[tail]
        end = pages[tail][1] + 1
        nodes[parent].children.append(len(nodes))
        todo += [(len(nodes), after) for after in below.get(tail, ())]
        nodes.append(
            Node(
                parent=parent,
                begin=begin * page_tokens,
                end=end * page_tokens,
                rows=ending.get(tail, []),
            )
        )
    return nodes


def _shared(chain: Sequence[int], count: Counter[int]) -> int:
    """Leading keys that other rows have too."""
    low, high = 0, len(chain)
    while low < high:
        middle = (low + high) // 2
        if count[chain[middle]] > 1:
            low = middle + 1
        else:
            high = middle
    return low


def depth_first(nodes: Sequence[Node]) -> list[int]:
    """Rows of every node before those below it."""
    found: list[int] = []
    stack = [ROOT]
    while stack:
        node = nodes[stack.pop()]
        found += node.rows
        stack += reversed(node.children)
    return found


def saved_tokens(nodes: Sequence[Node]) -> int:
    """Prompt tokens that need no computing when every shared segment is computed once."""
    rows = [len(node.rows) for node in nodes]
    saved = 0
    for number in range(len(nodes) - 1, ROOT, -1):
        node = nodes[number]
        rows[node.parent] += rows[number]
        saved += (rows[number] - 1) * node.tokens
    return saved
