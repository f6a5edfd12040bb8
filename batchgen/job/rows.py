"""Batch rows of a file: from its lines to tokens and limits, or to error rows. Runs nothing.

Accepts OpenAI batch lines (`custom_id`, `method`, `url`, `body`), the short forms `{"prompt"}` and
`{"messages"}`, and rows of columns that a `Shape` makes into one of these. A bad row becomes a
`BadRow` with a stable code and never stops the others. The tokenizer is passed in, so this file
needs neither torch nor a model.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from batchgen.ahead import in_order
from batchgen.errors import UserError
from batchgen.job.columns import Columns
from batchgen.job.crew import Crew
from batchgen.job.encoding import ANSWERED, ID_BYTES, OTHERS, OURS, Bad, Chunk, Encoded, Maker
from batchgen.job.fields import TYPED
from batchgen.job.inputs import Raw, column_names, read_raw, value_of
from batchgen.job.jsonl import InputDigest
from batchgen.job.prompts import PromptEncoder
from batchgen.job.row import Answered, BadRow, JobRow, RowLimits, TokenIds
from batchgen.job.shape import Shape

__all__ = [
    "BATCH_ROWS",
    "Answered",
    "BadRow",
    "JobRow",
    "RowChunk",
    "RowLimits",
    "TokenIds",
    "read_chunks",
    "read_job",
    "read_rows",
]

MOST_UNKNOWN = 100
"""Names of unknown fields that are counted; others may be data."""

# Rows are made many at a time, but only as many as one of these allows: memory stays that of a few
# lines.
BATCH_ROWS = 512
BATCH_BYTES = 1 << 20

# To start processes takes as long as threads take for some thousands of short rows.
HERE_ROWS = 8192


@dataclass(slots=True, kw_only=True)
class RowChunk:
    """Rows that come one after the other. `bad` and `good` are in their order; `answered` are the
    indices of rows that an earlier process has answered."""

    good: Columns
    bad: list[BadRow]
    answered: list[int]

    def __len__(self) -> int:
        return len(self.good) + len(self.bad) + len(self.answered)

    def rows(self) -> Iterator[JobRow | BadRow | Answered]:
        """Each as an object, in the order of the input."""
        found: list[JobRow | BadRow | Answered] = [*self.good.rows(), *self.bad]
        found += [Answered(index=index) for index in self.answered]
        found.sort(key=lambda row: row.index)
        yield from found


def read_job(
    path: Path,
    encoder: PromptEncoder,
    limits: RowLimits,
    *,
    limit: int | None = None,
    digest: InputDigest | None = None,
) -> list[JobRow | BadRow]:
    """The rows of a file, in order: all, or the first `limit`, behind which nothing is read.

    `digest` takes the bytes that were read. Raises UserError for a file without any row.
    """
    found = read_rows(path, encoder, limits, limit=limit, digest=digest)
    rows = [row for row in found if not isinstance(row, Answered)]
    if not rows:
        raise UserError(f"{path} holds no rows", remedy="put one JSON object on each line")
    return rows


def read_rows(
    path: Path,
    encoder: PromptEncoder,
    limits: RowLimits,
    *,
    limit: int | None = None,
    digest: InputDigest | None = None,
    form: str = "jsonl",
    shape: Shape | None = None,
    answered: Callable[[int], bool] | None = None,
    shard: tuple[int, int] | None = None,
    threads: int = 1,
    here_rows: int = HERE_ROWS,
) -> Generator[JobRow | BadRow | Answered]:
    """`read_chunks`, row by row, an object each."""
    chunks = read_chunks(
        path,
        encoder,
        limits,
        limit=limit,
        digest=digest,
        form=form,
        shape=shape,
        answered=answered,
        shard=shard,
        threads=threads,
        here_rows=here_rows,
    )
    try:
        for chunk in chunks:
            yield from chunk.rows()
    finally:
        chunks.close()


def read_chunks(
    path: Path,
    encoder: PromptEncoder,
    limits: RowLimits,
    *,
    limit: int | None = None,
    digest: InputDigest | None = None,
    form: str = "jsonl",
    shape: Shape | None = None,
    answered: Callable[[int], bool] | None = None,
    shard: tuple[int, int] | None = None,
    threads: int = 1,
    here_rows: int = HERE_ROWS,
) -> Generator[RowChunk]:
    """Rows a few at a time, so that a long file needs memory only for its ids. `answered` rows are
    not encoded. shard (i, n), i from 1: only each n-th row, from the i-th; ids that come twice are
    those of the whole file, and `index` counts in it.

    threads: rows are made in so many, ahead of those that are taken; with two and more, rows behind
    the first `here_rows` are made in as many processes. The rows are the same. Close the iterator
    when it is left: that ends the processes. Raises UserError for a file that cannot be read, or
    that has not the columns of `shape`.
    """
    if shape is not None:
        shape.check(path, column_names(path, form))
    digest = InputDigest() if digest is None else digest
    maker = Maker(encoder=encoder, limits=limits, form=form, shape=shape)
    chunks = _chunks(path, limits, limit, digest, form, answered, shard)
    file = _File(limits.unknown)
    with Crew(maker) as crew:

        def encoded(chunk: Chunk) -> Encoded:
            is_far = threads > 1 and chunk.first >= here_rows
            return crew.encoded(chunk) if is_far else maker.encoded(chunk)

        made = in_order(chunks, encoded, threads)
        try:
            for chunk, found in made:
                rows = file.rows(chunk, found)
                if limits.keep_requests:
                    rows.good.requests = _requests(chunk, rows.good, form)
                yield rows
        finally:
            made.close()


def _chunks(
    path: Path,
    limits: RowLimits,
    limit: int | None,
    digest: InputDigest,
    form: str,
    answered: Callable[[int], bool] | None,
    shard: tuple[int, int] | None,
) -> Iterator[Chunk]:
    """The file in chunks; the last may be empty."""
    raws = read_raw(path, form, limits.max_line_bytes, digest, TYPED)
    first, num_bytes, until = 0, 0, BATCH_BYTES
    lines: list[int] = []
    items: list[Raw] = []

    def chunk() -> Chunk:
        indices = range(first, first + len(items))
        return Chunk(
            first=first, lines=lines, items=items, states=_states(indices, answered, shard)
        )

    for line, item in islice(raws, None if limit is None else min(limit, sys.maxsize)):
        lines.append(line)
        items.append(item)
        if isinstance(item, bytes):
            num_bytes += len(item)
        if (
            len(items) >= BATCH_ROWS
            or num_bytes >= BATCH_BYTES  # of lines, which may have been packed in the file
            or digest.num_bytes >= until
        ):
            yield chunk()
            first, num_bytes, until = first + len(items), 0, digest.num_bytes + BATCH_BYTES
            lines, items = [], []
    yield chunk()


def _states(
    indices: range, answered: Callable[[int], bool] | None, shard: tuple[int, int] | None
) -> bytes:
    if answered is None and shard is None:
        return b""
    part, parts = (1, 1) if shard is None else shard
    return bytes(
        OTHERS
        if index % parts != part - 1
        else ANSWERED
        if answered is not None and answered(index)
        else OURS
        for index in indices
    )


class _File:
    """What only who sees all chunks in order can say: ids that came before, and how many rows have
    fields that nobody knows."""

    def __init__(self, unknown: Counter[str]) -> None:
        self._unknown = unknown
        self._seen: set[bytes] = set()

    def rows(self, chunk: Chunk, found: Encoded) -> RowChunk:
        twice = self._twice(found, len(chunk))
        if found.unknown:
            self._count(found.unknown, twice)
        good, bad = found.good, found.bad
        if twice:
            good, bad = _without(found, twice)
        bad_rows = [
            BadRow(
                index=chunk.first + place,
                line=chunk.lines[place],
                custom_id=custom_id,
                code=code,
                message=message,
                numbers=numbers,
            )
            for place, custom_id, code, message, numbers in bad
        ]
        answered = [
            chunk.first + place for place, state in enumerate(chunk.states) if state == ANSWERED
        ]
        return RowChunk(good=good, bad=bad_rows, answered=answered)

    def _twice(self, found: Encoded, num_rows: int) -> set[int]:
        """Places of rows whose ids came before."""
        joined = found.digests
        digests = [joined[n : n + ID_BYTES] for n in range(0, len(joined), ID_BYTES)]
        new = set(digests)
        if len(new) == len(digests) and self._seen.isdisjoint(new):
            self._seen |= new
            return set()
        nameless = set(found.nameless)
        places = [place for place in range(num_rows) if place not in nameless]
        twice = set()
        for place, digest in zip(places, digests, strict=True):
            if digest in self._seen:
                twice.add(place)
            self._seen.add(digest)
        return twice

    def _count(self, unknown: dict[tuple[str, ...], list[int]], twice: set[int]) -> None:
        """Names in the order of the rows that have them first, up to so many names."""
        for names, places in sorted(
            ((names, [p for p in places if p not in twice]) for names, places in unknown.items()),
            key=lambda one: one[1],
        ):
            for name in names if places else ():
                if len(self._unknown) < MOST_UNKNOWN or name in self._unknown:
                    self._unknown[name] += len(places)


def _without(found: Encoded, twice: set[int]) -> tuple[Columns, list[Bad]]:
    """Rows that run and rows that do not, when those of these places have ids that came before."""
    kept = np.array([place not in twice for place in found.places], dtype=np.bool_)
    names = [(place, custom_id) for place, custom_id, *_ in found.bad if place in twice]
    names += [
        (place, found.good.custom_id(number))
        for number, place in enumerate(found.places)
        if place in twice
    ]
    bad = [one for one in found.bad if one[0] not in twice]
    bad += [
        (place, name, "duplicate_custom_id", f"custom_id {name!r:.80} came before", {})
        for place, name in names
    ]
    return found.good.only(kept), sorted(bad, key=lambda row: row[0])


def _requests(chunk: Chunk, good: Columns, form: str) -> list[dict[str, object]]:
    """The objects of rows that run."""
    values = [value_of(chunk.items[int(index) - chunk.first], form) for index in good.index]
    return [value for value in values if isinstance(value, dict)]
