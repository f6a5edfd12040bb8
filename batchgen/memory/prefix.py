"""The prefix index of one rank: which leading prompt pages are known, who leases them, who goes
first.

Keys are chained page hashes (a key names all tokens up to its page), made by the caller. The index
counts; physical pages belong to the executor. Unleased pages stay as a cache that yields to need in
least-recently-used order, so cached pages never compete with a lease.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from batchgen.errors import IllegalTransition

Run = tuple[int, int, int]
"""(row, first, count): keys first .. first+count-1 of the row that published them."""


class PrefixIndex:
    """Reference counts of shared pages. Every method returns page counts for the pool's books."""

    __slots__ = ("_cached", "_leases", "_origin", "evictions", "hit_pages")

    def __init__(self) -> None:
        self._leases: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._origin: dict[int, tuple[int, int]] = {}  # key -> (row, page) that published it
        self.hit_pages = 0
        self.evictions = 0

    @property
    def num_leased(self) -> int:
        return len(self._leases)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def leases(self, key: int) -> int:
        """How many rows lease the page."""
        return self._leases.get(key, 0)

    def match(self, keys: Sequence[int]) -> int:
        """How many leading keys are present (leased or cached)."""
        hits = 0
        origin = self._origin
        for key in keys:
            if key not in origin:
                break
            hits += 1
        return hits

    def idle_among(self, keys: Sequence[int]) -> int:
        """How many of `keys` are cached but leased by nobody (leasing them costs pool pages)."""
        return sum(key in self._cached for key in keys)

    def lease(self, keys: Sequence[int]) -> int:
        """A row takes part in present pages; returns how many of them were leased by nobody
        before."""
        newly = 0
        for key in keys:
            if key in self._leases:
                self._leases[key] += 1
            elif key in self._cached:
                del self._cached[key]
                self._leases[key] = 1
                newly += 1
            else:
                raise IllegalTransition(f"prefix page {key} is leased but not present")
        self.hit_pages += len(keys)
        return newly

    def publish(self, keys: Sequence[int], row: int, first: int) -> int:
        """A row offers its private pages `first` .. in order; stops at a key that is known.

        Returns how many became shared (leased by this row alone); their pool pages do not change.
        """
        count = 0
        for key in keys:
            if key in self._origin:
                break
            self._leases[key] = 1
            self._origin[key] = (row, first + count)
            count += 1
        return count

    def release(self, keys: Sequence[int]) -> int:
        """A row lets go; returns how many pages nobody leases any more (they stay as cache).

        The last page of a prefix becomes the oldest cache entry: leaves leave before their parents.
        """
        idle = 0
        for key in reversed(keys):
            leases = self._leases.get(key, 0) - 1
            if leases < 0:
                raise IllegalTransition(f"prefix page {key} is released but not leased")
            if leases:
                self._leases[key] = leases
            else:
                del self._leases[key]
                self._cached[key] = None
                idle += 1
        return idle

    def shrink(self, capacity: int) -> list[Run]:
        """Forget the least recently used cached pages until at most `capacity` stay.

        Returns them as runs of neighbouring pages that one row published.
        """
        gone: list[tuple[int, int]] = []
        while len(self._cached) > max(capacity, 0):
            key, _ = self._cached.popitem(last=False)
            gone.append(self._origin.pop(key))
        self.evictions += len(gone)
        runs: list[Run] = []
        for row, page in gone:
            if runs and runs[-1][0] == row and runs[-1][1] == page + 1:
                runs[-1] = (row, page, runs[-1][2] + 1)  # leaves go first, so runs grow downwards
            else:
                runs.append((row, page, 1))
        return runs
