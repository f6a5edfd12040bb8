"""The paged KV arena of one tier: storage, page allocator with reference counts, block tables.

Decides nothing: the runtime counts pages and says when to fill or free them; this file chooses the
physical page numbers, and they never leave `batchgen.exec`.

A page holds the KV of all layers contiguously, shape [layers, parts, heads, page_tokens, head_dim]
(parts: keys and values, or one latent), so that moving a page between tiers is one contiguous span.
Attention of one layer gathers through the flat view [pages * layers * parts, ...], which costs the
same as a layer-major layout (measured; an index_select on a strided layer view is 15 times slower).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from batchgen.errors import IllegalTransition
from batchgen.exec.batch import IntArray
from batchgen.exec.config import KvLayout
from batchgen.exec.system_pages import ask_huge_pages, take_now


class PagePool:
    """Physical pages of one tier with reference counts. A page is free when its count is zero.

    `clean` is called for pages of `soiled` that become free.
    """

    def __init__(
        self, name: str, num_pages: int, clean: Callable[[list[int]], None] = lambda pages: None
    ) -> None:
        self.name = name
        self.num_pages = num_pages
        self.soiled: set[int] = set()
        self._clean = clean
        self.references: IntArray = np.zeros(num_pages, dtype=np.int64)
        self._free = list(range(num_pages - 1, -1, -1))  # a stack; the lowest page comes first

    @property
    def used(self) -> int:
        """Distinct pages with at least one reference."""
        return self.num_pages - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages. Running out is the runtime's mistake, never the user's."""
        if count > len(self._free):
            raise IllegalTransition(
                f"{self.name} pool: {count} pages asked, {len(self._free)} of {self.num_pages} free"
            )
        pages = [self._free.pop() for _ in range(count)]
        self.references[pages] = 1
        return pages

    def retain(self, pages: Sequence[int]) -> None:
        """One more reference on each page."""
        for page in pages:
            if self.references[page] < 1:
                raise IllegalTransition(f"{self.name} pool: a free page was shared")
            self.references[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """One reference less on each page; free those that reach zero."""
        for page in pages:
            if self.references[page] < 1:
                raise IllegalTransition(f"{self.name} pool: a free page was dropped")
            self.references[page] -= 1
            if self.references[page] == 0:
                if page in self.soiled:
                    self.soiled.discard(page)
                    self._clean([page])
                self._free.append(page)


class BlockTables:
    """Physical pages of each row, in order: a growing array [slots, columns] with lengths.

    An array and not lists, so that a pass finds the pages of all its rows with a few NumPy calls.
    """

    def __init__(self) -> None:
        self.pages: IntArray = np.zeros((16, 8), dtype=np.int64)
        self.counts: IntArray = np.zeros(16, dtype=np.int64)

    def append(self, slot: int, pages: Sequence[int]) -> None:
        """Add pages behind those that the slot has."""
        count = int(self.counts[slot]) if slot < len(self.counts) else 0
        self._grow(slot + 1, count + len(pages))
        self.pages[slot, count : count + len(pages)] = pages
        self.counts[slot] = count + len(pages)

    def of(self, slot: int) -> list[int]:
        """The pages of one slot."""
        if slot >= len(self.counts):
            return []
        pages: list[int] = self.pages[slot, : self.counts[slot]].tolist()
        return pages

    def clear(self, slot: int, keep: int = 0) -> list[int]:
        """Forget and return the pages of one slot, but for the first `keep`."""
        pages = self.of(slot)[keep:]
        if pages:
            self.counts[slot] = keep
        return pages

    def _grow(self, slots: int, columns: int) -> None:
        have = self.pages.shape
        if slots <= have[0] and columns <= have[1]:
            return
        shape = tuple(
            max(size, 2 * old if size > old else old)
            for size, old in zip((slots, columns), have, strict=True)
        )
        pages = np.zeros(shape, dtype=np.int64)
        pages[: have[0], : have[1]] = self.pages
        counts = np.zeros(shape[0], dtype=np.int64)
        counts[: have[0]] = self.counts
        self.pages, self.counts = pages, counts


class KvArena:
    """One tier: `num_pages` KV pages of a model, their pool and their block tables.

    `storage` has shape [pages, layers, parts, heads, page_tokens, head_dim]. With `spare` it has
    one page more, number `num_pages`, which no row ever gets: what a pass of fixed size writes for
    rows that are not there. `put` runs what the arena does to its storage by itself. `zeros` makes
    the storage, if the device's memory will not do.
    """

    def __init__(
        self,
        name: str,
        num_pages: int,
        layout: KvLayout,
        *,
        page_tokens: int,
        dtype: torch.dtype,
        device: str = "cpu",
        spare: bool = False,
        put: Callable[[Callable[[], object]], object] = lambda work: work(),
        zeros: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] | None = None,
    ) -> None:
        self.name = name
        self._put = put
        self.layout = layout
        self.page_tokens = page_tokens
        self.device = torch.device(device)
        self.spare = num_pages if spare else -1
        pages = num_pages + spare
        shape = (pages, layout.layers, layout.parts, layout.heads, page_tokens, layout.head_dim)
        # Zeros, not empty: masked positions are multiplied by 0, which does not hide a stray NaN.
        make = zeros or (lambda shape, dtype: _zeros(shape, dtype, self.device))
        self.storage = make(shape, dtype)
        self.flat = self.storage.view(-1, layout.heads, page_tokens, layout.head_dim)
        self._vectors = self.storage.view(-1, layout.head_dim)
        # Per part one buffer for it as stored and one for it in float32: see `load`.
        self._buffers: dict[str, torch.Tensor] = {}
        self.pool = PagePool(name, num_pages, self._clean)
        self.tables = BlockTables()

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.storage[0].numel() * self.storage.element_size() if len(self.storage) else 0

    def reserve(self, slot: int, tokens: int) -> None:
        """Make sure that the slot has pages for its first `tokens` tokens."""
        have = int(self.tables.counts[slot]) if slot < len(self.tables.counts) else 0
        missing = -(-tokens // self.page_tokens) - have
        if missing > 0:
            self.tables.append(slot, self.pool.allocate(missing))

    def erase(self, slot: int) -> None:
        """Zeros over the pages of the slot as soon as nobody has them: a NaN left behind would
        reach the next owner."""
        self.pool.soiled.update(self.tables.of(slot))

    def _clean(self, pages: Sequence[int]) -> None:
        index = np.array(pages, dtype=np.int64)

        def clean() -> None:
            self.storage[self.tensor(index)] = 0

        self._put(clean)

    def tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """An array as a tensor where this arena is."""
        return torch.from_numpy(array).to(self.device)

    def release(self, slot: int, keep_tokens: int = 0) -> None:
        """Drop every page of the slot, but for those of its first tokens; shared pages live on with
        their other owners."""
        self.pool.drop(self.tables.clear(slot, -(-keep_tokens // self.page_tokens)))

    def write(
        self, layer: int, pages: torch.Tensor, offsets: torch.Tensor, *parts: torch.Tensor
    ) -> None:
        """Store the KV of new tokens: token t goes to `pages[t]` at `offsets[t]`.

        Each of `parts` has shape [tokens, heads, head_dim]: keys and values, or the latent.
        """
        base = self._base(layer, pages)
        for part, vectors in enumerate(parts):
            self.flat[base + part, :, offsets] = vectors

    def gather(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parts of pages [M] in a layer, each [M, heads, page_tokens, head_dim]."""
        base = self._base(layer, pages)
        return tuple(self.flat.index_select(0, base + part) for part in range(self.layout.parts))

    def load(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `gather` gives, in float32 and in buffers that the next load writes over.

        Buffers, because fresh memory of this size costs more than the copy (page faults).
        """
        base = self._base(layer, pages)
        shape = (len(pages), *self.flat.shape[1:])
        return tuple(
            self._load(str(part), self.flat, base + part, shape)
            for part in range(self.layout.parts)
        )

    def load_tokens(self, layer: int, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The parts of single tokens in float32, in the buffers of `load`.

        `tokens` [M, B] are numbers from `token_numbers`; each part [M, heads, B, head_dim].
        """
        layout, page_tokens = self.layout, self.page_tokens
        plane = layout.heads * page_tokens
        heads = torch.arange(layout.heads, device=self.device) * page_tokens
        index = (tokens + layer * layout.parts * plane)[:, None] + heads[:, None]
        shape = (len(tokens), layout.heads, tokens.shape[1], layout.head_dim)
        flat = index.flatten()
        return tuple(
            self._load(str(part), self._vectors, flat + part * plane, shape)
            for part in range(layout.parts)
        )

    def token_numbers(self, slots: IntArray, positions: IntArray) -> IntArray:
        """Where the first head's first part of these tokens of these rows lies in layer 0."""
        columns, offsets = np.divmod(positions, self.page_tokens)
        layout = self.layout
        of_page = layout.layers * layout.parts * layout.heads * self.page_tokens
        numbers: IntArray = self.tables.pages[slots, columns] * of_page + offsets
        return numbers

    def _base(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """The first part of these pages in `flat`."""
        parts = self.layout.parts
        return pages * (parts * self.layout.layers) + parts * layer

    def _load(
        self, name: str, source: torch.Tensor, index: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        stored = self._buffer(name, self.storage.dtype, shape)
        torch.index_select(source, 0, index, out=stored.view(len(index), *source.shape[1:]))
        if stored.dtype == torch.float32:
            return stored
        return self._buffer(name + " wide", torch.float32, shape).copy_(stored)

    def _buffer(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        need = math.prod(shape)
        have = self._buffers.get(name)
        if have is None or have.numel() < need:
            have = self._buffers[name] = torch.empty(need, dtype=dtype, device=self.device)
        return have[:need].view(shape)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; in plain memory of the CPU only the first are taken from the system now, others when
    they are used."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        untouched = np.zeros(size, dtype=np.uint8)
    except MemoryError as error:
        raise RuntimeError(f"no memory for {size} bytes: {error}") from None
    ask_huge_pages(untouched.ctypes.data, size)
    take_now(untouched.ctypes.data, size)
    return torch.from_numpy(untouched).view(dtype).view(shape)
