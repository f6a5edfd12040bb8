"""Files and batches as OpenAI's API has them, and which state of a batch may follow which. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from batchgen.errors import IllegalTransition

NEXT = {
    "validating": ("failed", "in_progress", "cancelling", "expired"),
    "in_progress": ("finalizing", "cancelling", "expired", "failed"),
    "finalizing": ("completed", "failed"),
    "cancelling": ("cancelled",),
    "completed": (),
    "failed": (),
    "expired": (),
    "cancelled": (),
}
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")

WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_WINDOW_S = 30 * SECONDS["d"]


class FileObject(msgspec.Struct, kw_only=True):
    """A file; times are Unix seconds."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        more = {"object": "file", "status": "processed", "status_details": None}
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found | more


class Counts(msgspec.Struct, kw_only=True):
    """Rows and tokens of a batch. While it runs `completed + failed` are the rows that ended."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class BatchError(msgspec.Struct, kw_only=True):
    """What was wrong with a batch; `line` from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(msgspec.Struct, kw_only=True):
    """A batch; times are Unix seconds.

    Clients do not see `ending`, the last state where it has been decided on and the files are still
    to be written, and `output_expires_s`, how long those stay.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: str = "validating"
    metadata: dict[str, str] | None = None
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    errors: list[BatchError] = msgspec.field(default_factory=list)
    counts: Counts = msgspec.field(default_factory=Counts)
    ending: str = ""
    output_expires_s: int | None = None

    @property
    def is_finished(self) -> bool:
        return self.status not in UNFINISHED

    def move(self, status: str, now_s: int) -> None:
        """To the next state. Raises IllegalTransition where there is no such way."""
        if status not in NEXT[self.status]:
            raise IllegalTransition(f"{self.id} cannot go from {self.status} to {status}")
        self.status = status
        setattr(self, f"{status}_at", now_s)

    def shown(self, counts: Counts | None = None) -> dict[str, Any]:
        """As clients see it; `counts`: those of this moment, if they are newer."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        for name in ("ending", "output_expires_s", "counts"):
            del found[name]
        ours = self.counts if counts is None else counts
        tokens = ours.input_tokens + ours.output_tokens
        return found | {
            "object": "batch",
            "errors": {"object": "list", "data": found["errors"]} if self.errors else None,
            "request_counts": {
                "total": ours.total,
                "completed": ours.completed,
                "failed": ours.failed,
            },
            "usage": {
                "input_tokens": ours.input_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": ours.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens,
            },
        }


def window_s(text: str) -> int | None:
    """Seconds of a completion window like "24h", None for what is none."""
    found = WINDOW.fullmatch(text)
    if found is None:
        return None
    seconds = int(found[1]) * SECONDS[found[2]]
    return seconds if seconds <= LONGEST_WINDOW_S else None


def listed(items: list[dict[str, Any]], *, has_more: bool) -> Mapping[str, Any]:
    """A page of objects."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
