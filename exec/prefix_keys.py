"""Keys of prompt pages: equal exactly where two prompts are the same up to the end of the page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from batchgen.job.rows import TokenIds


def shared_page_keys(prompts: Sequence[TokenIds], page_tokens: int) -> list[list[int]] | None:
    """Chained keys of every prompt's full pages; None when no two prompts share a page, so that
    nothing is spent on an index without use."""
    keys: list[list[int]] = []
    seen: set[int] = set()
    shared = False
    last: TokenIds = ()
    for ids in prompts:
        if ids is last:  # another sample of the same row
            shared = shared or bool(keys[-1])
            keys.append(keys[-1])
            continue
        last = ids
        chain: list[int] = []
        digest = b""
        for start in range(0, len(ids) - page_tokens + 1, page_tokens):
            page = np.asarray(ids[start : start + page_tokens], dtype=np.int64).tobytes()
            digest = hashlib.blake2b(digest + page, digest_size=8).digest()
            key = int.from_bytes(digest, "little") >> 1  # fits JSON's signed 64 bits
            shared = shared or key in seen
            chain.append(key)
        seen.update(chain)
        keys.append(chain)
    return keys if shared else None


def num_shared_pages(keys: Sequence[Sequence[int]]) -> int:
    """Distinct pages that more than one prompt has."""
    seen: set[int] = set()
    again: set[int] = set()
    for chain in keys:
        again.update(seen.intersection(chain))
        seen.update(chain)
    return len(again)
