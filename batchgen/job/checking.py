"""A file of rows checked by itself: its structure, its options, ids that come twice. Without a
model: what needs a tokenizer (lengths, templates) is for `batchgen exec --dry-run`. It imports
no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchgen.cores import num_cores
from batchgen.job.inputs import form_of
from batchgen.job.jsonl import InputDigest
from batchgen.job.rows import BadRow, RowLimits, read_chunks
from batchgen.job.shape import Shape

FIRST_ROWS = 3
"""Bad rows of a code that are named."""
MOST_PROCESSES = 2
"""That make the rows of a long file: a check shall stay small on a machine of many cores too."""
LARGEST = 1 << 31
"""No vocabulary is larger, no context longer."""


@dataclass(slots=True)
class BadRows:
    """Rows that cannot run: how many by code, and the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[BadRow]] = field(default_factory=dict)

    def add(self, row: BadRow) -> None:
        self.counts[row.code] += 1
        some = self.first.setdefault(row.code, [])
        if len(some) < FIRST_ROWS:
            some.append(row)

    def as_json(self) -> dict[str, Any]:
        """By code: how many, and line and message of the first."""
        return {
            code: {
                "rows": number,
                "first": [{"line": row.line, "message": row.message} for row in self.first[code]],
            }
            for code, number in self.counts.items()
        }


@dataclass(slots=True)
class Checked:
    """What was found in a file."""

    num_rows: int = 0
    num_bytes: int = 0
    sha256: str = ""
    bad: BadRows = field(default_factory=BadRows)
    unknown: Counter[str] = field(default_factory=Counter)


class _NoTokenizer:
    """Every prompt is one token: nobody knows how many it really is."""

    vocab_size = LARGEST

    def recipe(self) -> tuple[str, list[str]]:
        return f"{__name__}:{type(self).__name__}", []

    @classmethod
    def made(cls) -> _NoTokenizer:
        return cls()

    def encode_texts(self, texts: Sequence[str]) -> Sequence[list[int] | ValueError]:
        return [[0]] * len(texts)

    def encode_conversations(
        self, conversations: Sequence[list[dict[str, Any]]]
    ) -> Sequence[list[int] | ValueError]:
        return [[0]] * len(conversations)


def check_rows(
    path: Path,
    *,
    form: str = "auto",
    shape: Shape | None = None,
    strict: bool = False,
    limit: int | None = None,
) -> Checked:
    """All rows of a file, or the first `limit`. Raises UserError for one that cannot be read."""
    found, digest = Checked(), InputDigest()
    limits = RowLimits(max_context=LARGEST, strict=strict, unknown=found.unknown)
    chunks = read_chunks(
        path,
        _NoTokenizer(),
        limits,
        limit=limit,
        digest=digest,
        form=form_of(path, form),
        shape=shape,
        threads=min(num_cores(), MOST_PROCESSES),
    )
    with closing(chunks):
        for chunk in chunks:
            found.num_rows += len(chunk)
            for row in chunk.bad:
                found.bad.add(row)
    found.num_bytes, found.sha256 = digest.num_bytes, digest.hexdigest()
    return found
