"""Page counts and the closed forms of growth. No physical pages here.

A decoding row at `computed` KV tokens needs a new page in the pass where `computed % P == 0`. With
`offset = computed - k` (constant while it decodes) that is every pass with `k % P == (-offset) %
P`: a histogram over residues answers how many pages a rank needs in any run of passes.
"""

from __future__ import annotations

from functools import cache

FOREVER = 1 << 40
"""A number of passes that no run reaches (the pass counter is far below it)."""


def pages_for(tokens: int, page_tokens: int) -> int:
    """Pages that `tokens` KV tokens fill: ceil(tokens / page_tokens)."""
    return -(-tokens // page_tokens)


BOUNDARIES_AHEAD = 2
"""Boundaries of decode passes for which BatchGen's parts keep pages, unless told otherwise."""


@cache  # asked for every row that is admitted
def pages_ahead(boundary: int, boundaries: int, page_tokens: int) -> int:
    """Pages that a decoding row can need before so many boundaries have passed, on the average over
    where its last page ends. BatchGen's two pages are two boundaries of 64 passes, pages of 64."""
    return pages_for(boundary * boundaries, page_tokens)


class GrowthHistogram:
    """How many decoding rows cross a page boundary in each residue of the decode clock."""

    __slots__ = ("counts", "num_rows", "page_tokens")

    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.counts = [0] * page_tokens
        self.num_rows = 0

    def add(self, offset: int) -> None:
        self.counts[-offset % self.page_tokens] += 1
        self.num_rows += 1

    def remove(self, offset: int) -> None:
        self.counts[-offset % self.page_tokens] -= 1
        self.num_rows -= 1

    def clear(self) -> None:
        self.counts = [0] * self.page_tokens
        self.num_rows = 0

    @staticmethod
    def pages_of_one(computed: int, passes: int, page_tokens: int) -> int:
        """Pages that a single row of `computed` tokens needs in its next passes."""
        return pages_for(computed + passes, page_tokens) - pages_for(computed, page_tokens)

    def growth(self, k: int, passes: int) -> int:
        """Pages that passes k .. k+passes-1 need."""
        size = self.page_tokens
        if passes == 1:
            return self.counts[k % size]
        cycles, rest = divmod(passes, size)
        pages = cycles * self.num_rows
        if rest:
            start = k % size
            end = start + rest
            counts = self.counts
            if end <= size:
                pages += sum(counts[start:end])
            else:
                pages += sum(counts[start:]) + sum(counts[: end - size])
        return pages

    def passes_that_fit(self, k: int, free: int) -> int:
        """A number of passes from k whose growth is at most `free` pages: at least 1 where one
        pass fits, though perhaps not the largest (any will do, and whole cycles are cheap)."""
        rows = self.num_rows
        if not rows:
            return FOREVER
        size, counts = self.page_tokens, self.counts
        cycles = free // rows
        if cycles:
            return cycles * size
        passes, at = 0, k % size
        while True:
            free -= counts[at]
            if free < 0:
                return passes
            passes += 1
            at += 1
            if at == size:
                at = 0
