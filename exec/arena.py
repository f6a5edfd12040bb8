"""The paged KV arena of one tier: storage, page allocator with reference counts, block tables.

Decides nothing: the runtime counts pages and says when to fill or free them; this file chooses the
physical page numbers, and they never leave `batchgen.exec`.

A page holds keys and values of all layers contiguously, shape [layers, 2, kv_heads, page_tokens,
head_dim], so that moving a page between tiers is one contiguous span. Attention of one layer
gathers through the flat view [pages * layers * 2, ...], which costs the same as a layer-major
layout (measured; an index_select on a strided layer view is 15 times slower).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchgen.errors import IllegalTransition

IntArray = npt.NDArray[np.int64]


class PagePool:
    """Physical pages of one tier with reference counts. A page is free when its count is zero."""

    def __init__(self, name: str, num_pages: int) -> None:
        self.name = name
        self.num_pages = num_pages
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

    `storage` has shape [pages, layers, 2, kv_heads, page_tokens, head_dim].
    """

    def __init__(
        self,
        name: str,
        num_pages: int,
        *,
        num_layers: int,
        num_kv_heads: int,
        page_tokens: int,
        head_dim: int,
        dtype: torch.dtype,
        device: str = "cpu",
        pinned: bool = False,
    ) -> None:
        self.page_tokens = page_tokens
        self.name = name
        self.num_layers = num_layers
        self.device = torch.device(device)
        shape = (num_pages, num_layers, 2, num_kv_heads, page_tokens, head_dim)
        # Zeros, not empty: masked positions are multiplied by 0, which does not hide a stray NaN.
        self.storage = _zeros(shape, dtype, self.device, pinned)
        self.flat = self.storage.view(-1, num_kv_heads, page_tokens, head_dim)
        self._vectors = self.storage.view(-1, head_dim)
        # Two buffers for keys and values as stored, two for them in float32: see `load`.
        self._buffers: dict[str, torch.Tensor] = {}
        self.pool = PagePool(name, num_pages)
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
        """Write zeros over the pages that are the slot's alone: a NaN left behind would reach the
        next owner."""
        pages = np.array(self.tables.of(slot), dtype=np.int64)
        self.storage[self.tensor(pages[self.pool.references[pages] == 1])] = 0

    def tensor(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """An array as a tensor where this arena is."""
        return torch.from_numpy(array).to(self.device)

    def release(self, slot: int, keep_tokens: int = 0) -> None:
        """Drop every page of the slot, but for those of its first tokens; shared pages live on with
        their other owners."""
        self.pool.drop(self.tables.clear(slot, -(-keep_tokens // self.page_tokens)))

    def write(
        self,
        layer: int,
        pages: torch.Tensor,
        offsets: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Store new keys and values: token t goes to `pages[t]` at `offsets[t]`.

        `keys` and `values` have shape [tokens, kv_heads, head_dim].
        """
        base = pages * (2 * self.num_layers) + 2 * layer
        self.flat[base, :, offsets] = keys
        self.flat[base + 1, :, offsets] = values

    def gather(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of pages [M] in a layer: two of [M, kv_heads, page_tokens, head_dim]."""
        base = pages * (2 * self.num_layers) + 2 * layer
        return self.flat.index_select(0, base), self.flat.index_select(0, base + 1)

    def load(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `gather` gives, in float32 and in buffers that the next load writes over.

        Buffers, because fresh memory of this size costs more than the copy (page faults).
        """
        base = pages * (2 * self.num_layers) + 2 * layer
        shape = (len(pages), *self.flat.shape[1:])
        return (
            self._load("keys", self.flat, base, shape),
            self._load("values", self.flat, base + 1, shape),
        )

    def load_tokens(self, layer: int, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of single tokens in float32, in the buffers of `load`.

        `tokens` [M, B] are numbers from `token_numbers`; two of [M, kv_heads, B, head_dim].
        """
        _, _, _, kv_heads, page_tokens, head_dim = self.storage.shape
        heads = torch.arange(kv_heads, device=self.device) * page_tokens
        index = (tokens + 2 * layer * kv_heads * page_tokens)[:, None] + heads[:, None]
        shape = (len(tokens), kv_heads, tokens.shape[1], head_dim)
        flat = index.flatten()
        return (
            self._load("keys", self._vectors, flat, shape),
            self._load("values", self._vectors, flat + kv_heads * page_tokens, shape),
        )

    def token_numbers(self, slots: IntArray, positions: IntArray) -> IntArray:
        """Where the first head's key of these tokens of these rows lies in layer 0."""
        columns, offsets = np.divmod(positions, self.page_tokens)
        _, layers, _, kv_heads, page_tokens, _ = self.storage.shape
        numbers: IntArray = (
            self.tables.pages[slots, columns] * (layers * 2 * kv_heads * page_tokens) + offsets
        )
        return numbers

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


def _zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pinned: bool
) -> torch.Tensor:
    """Zeros; in plain memory of the CPU a page of them is taken from the system when it is used."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or pinned or not size:
        return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)
    try:
        untouched = np.zeros(size, dtype=np.uint8)
    except MemoryError as error:
        raise RuntimeError(f"no memory for {size} bytes: {error}") from None
    return torch.from_numpy(untouched).view(dtype).view(shape)


def copy_pages(source: KvArena, target: KvArena, slot: int, first: int, last: int) -> int:
    """Copy pages [first, last) of a slot from one tier to the other; returns bytes moved.

    The target must hold those pages already.
    """
    if last <= first:
        return 0
    src = source.tensor(source.tables.pages[slot, first:last])
    dst = target.tensor(target.tables.pages[slot, first:last])
    target.storage.index_copy_(0, dst, source.storage.index_select(0, src).to(target.device))
    return (last - first) * source.page_bytes
