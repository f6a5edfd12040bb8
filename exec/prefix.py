"""Physical pages of published prefixes. The runtime owns the index and says what to share; here is
only which page holds which key."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from batchgen.errors import IllegalTransition
from batchgen.exec.arena import KvArena
from batchgen.exec.rows import Ints, Rows


class PrefixPages:
    """Published pages of one arena. What concerns pages that the next pass fills waits for it."""

    def __init__(self, arena: KvArena, rows: Rows) -> None:
        self._arena = arena
        self._rows = rows
        self._pages: dict[int, int] = {}  # page key of the runtime -> physical page
        self._promised: set[int] = set()  # keys of pages that the next pass takes and fills
        self._before_pass: list[Callable[[], None]] = []
        # Physical pages that a row has not filled because it failed; who adopts one fills it.
        self._unfilled: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._pages)

    def begin_pass(self) -> None:
        """A pass begins: what waited for its pages is done."""
        if self._before_pass:
            for share in self._before_pass:
                share()
            self._before_pass.clear()
            self._promised.clear()

    def adopt(self, row: int, keys: Sequence[int]) -> None:
        """Let an empty row begin with the published pages `keys`, in order."""
        slot = self._rows.slot(row)
        known = int(self._rows.prompt[slot] + self._rows.tail[slot])
        if self._arena.tables.of(slot):
            raise IllegalTransition(f"row {row} adopts a prefix but has pages already")
        if len(keys) * self._arena.page_tokens >= known:
            raise IllegalTransition(f"row {row} adopts its last token, which must be computed")
        missing = [key for key in keys if key not in self._pages and key not in self._promised]
        if missing:
            raise IllegalTransition(f"row {row} adopts unpublished page {missing[0]}")
        if all(key in self._pages for key in keys):
            self._share(row, keys)
        else:
            self._before_pass.append(lambda: self._share(row, keys))

    def _share(self, row: int, keys: Sequence[int]) -> None:
        slot = self._rows.slot(row)
        pages = [self._pages[key] for key in keys]
        self._arena.pool.retain(pages)
        self._arena.tables.append(slot, pages)
        self._rows.computed[slot] = len(keys) * self._arena.page_tokens

    def publish(self, row: int, first: int, keys: Sequence[int]) -> None:
        """Offer the row's pages `first` .. under these keys.

        Pages that the next pass fills are taken when it begins (what gives them back may be asked
        for only after this), and are whole before anybody reads them: a pass writes all its KV
        before it attends.
        """
        slot = self._rows.slot(row)
        known = int(self._rows.prompt[slot] + self._rows.tail[slot])
        if (first + len(keys)) * self._arena.page_tokens > known:
            raise IllegalTransition(f"row {row} publishes pages that it will not fill")
        for key in keys:
            if key in self._pages or key in self._promised:
                raise IllegalTransition(f"row {row} publishes page {key}, which is known")
        here = min(max(len(self._arena.tables.of(slot)) - first, 0), len(keys))
        if here:
            self._offer(row, first, keys[:here])
        if here < len(keys):
            self._promised.update(keys[here:])
            self._before_pass.append(lambda: self._offer(row, first + here, keys[here:]))

    def _offer(self, row: int, first: int, keys: Sequence[int]) -> None:
        slot = self._rows.slot(row)
        self._arena.reserve(slot, (first + len(keys)) * self._arena.page_tokens)
        pages = self._arena.tables.of(slot)[first : first + len(keys)]
        for key, page in zip(keys, pages, strict=True):
            self._arena.pool.retain([page])
            self._pages[key] = page

    def spoil(self, slot: int) -> None:
        """The row of this slot failed: it fills no more of its pages. The runtime does not know
        which of them it has published, and lets others begin with them."""
        whole = int(self._rows.computed[slot]) // self._arena.page_tokens
        self._unfilled.update(self._arena.tables.of(slot)[whole:])

    def begins(self, slot: int, start: int) -> int:
        """Where a chunk from `start` on must begin: at the first page that nobody has filled."""
        if self._unfilled:
            page = self._arena.page_tokens
            for number, held in enumerate(self._arena.tables.of(slot)[: -(-start // page)]):
                if held in self._unfilled:
                    return number * page
        return start

    def filled(self, slots: Ints, starts: Ints, ends: Ints) -> None:
        """Rows have computed the tokens [starts, ends) of these slots."""
        if self._unfilled:
            page = self._arena.page_tokens
            for slot, start, end in zip(*(x.tolist() for x in (slots, starts, ends)), strict=True):
                self._unfilled -= {*self._arena.tables.of(slot)[start // page : -(-end // page)]}

    def forget(self, keys: Sequence[int]) -> None:
        """Withdraw published pages; rows that adopted them keep them."""
        for key in keys:
            if key not in self._pages:
                raise IllegalTransition(f"page {key} was forgotten but never published")
            self._arena.pool.drop([self._pages.pop(key)])
