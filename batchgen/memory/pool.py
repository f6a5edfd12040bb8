"""Page counts: pools of one tier at one place, and the closed forms of growth. No physical pages
here.

A decoding row at `computed` KV tokens needs a new page in the pass where `computed % P == 0`. With
`offset = computed - q` (constant while it decodes) that is every pass with `q % P == (-offset) %
P`:
a histogram over residues answers how many pages a rank needs in any run of passes.
"""

from __future__ import annotations

from batchgen.errors import IllegalTransition

FOREVER = 1 << 40
"""A number of passes that no run reaches (the host-side pass counter is far below it)."""


def pages_for(tokens: int, page_tokens: int) -> int:
    """Pages that `tokens` KV tokens fill: ceil(tokens / page_tokens)."""
    return -(-tokens // page_tokens)


BOUNDARIES_AHEAD = 2
"""Boundaries of decode passes for which BatchGen's parts keep pages, unless told otherwise."""


def pages_ahead(boundary: int, boundaries: int, page_tokens: int) -> int:
    """Pages that a decoding row can need before so many boundaries have passed, on the average over
    where its last page ends. BatchGen's two pages are two boundaries of 64 passes, pages of 64."""
    return pages_for(boundary * boundaries, page_tokens)


class Pool:
    """`size` pages of which `used` are leased. Raises IllegalTransition when counts would break."""

    __slots__ = ("name", "peak", "size", "used")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.used = 0
        self.peak = 0

    @property
    def free(self) -> int:
        return self.size - self.used

    def lease(self, pages: int) -> None:
        """Take `pages` (negative gives back)."""
        used = self.used + pages
        if used < 0 or used > self.size:
            raise IllegalTransition(
                f"pool {self.name}: {self.used} of {self.size} pages leased, cannot take {pages}"
            )
        self.used = used
        if used > self.peak:
            self.peak = used


class GrowthHistogram:
    """How many decoding rows cross a page boundary in each residue of the pass counter."""

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

    def growth(self, q: int, passes: int) -> int:
        """Pages that passes q .. q+passes-1 need."""
        size = self.page_tokens
        if passes == 1:
            return self.counts[q % size]
        cycles, rest = divmod(passes, size)
        pages = cycles * self.num_rows
        if rest:
            start = q % size
            end = start + rest
            counts = self.counts
            if end <= size:
                pages += sum(counts[start:end])
            else:
                pages += sum(counts[start:]) + sum(counts[: end - size])
        return pages

    def passes_that_fit(self, q: int, free: int) -> int:
        """The largest number of passes from q whose growth is at most `free` pages."""
        if not self.num_rows:
            return FOREVER
        cycles, left = divmod(free, self.num_rows)
        size, counts = self.page_tokens, self.counts
        passes = cycles * size
        at = q % size
        while True:
            left -= counts[at]
            if left < 0:
                return passes
            passes += 1
            at += 1
            if at == size:
                at = 0
