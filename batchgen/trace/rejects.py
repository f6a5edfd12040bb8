"""The account of rows that did not become rows of a trace. Decides nothing about their content.

A *bad* line is one that cannot be read: an error, or counted when the user asked to skip it. A
*dropped* row is readable but is no request by a rule (for instance no output): always counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from batchgen.errors import DataError

FIRST_MESSAGES = 5


@dataclass(slots=True, kw_only=True)
class Rejects:
    """Counts of bad lines and dropped rows of one file."""

    skip_bad: bool
    num_bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def bad(self, error: DataError) -> None:
        """Count the error, or raise it when bad lines are not to be skipped."""
        if not self.skip_bad:
            raise error
        self.num_bad += 1
        if len(self.first_bad) < FIRST_MESSAGES:
            self.first_bad.append(str(error))

    def drop(self, reason: str) -> None:
        """Count a row that a rule leaves out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def as_meta(self) -> dict[str, Any]:
        """What to record in the trace's meta: only the keys that have something to say."""
        meta: dict[str, Any] = {}
        if self.num_bad:
            meta["skipped"] = {"lines": self.num_bad, "first": list(self.first_bad)}
        if self.dropped:
            meta["dropped"] = dict(sorted(self.dropped.items()))
        return meta
