"""Which rows of a run did not end as they should, and why. It prints nothing.

A bad input row never comes to the runtime. Of those that do, every one must end with its output;
only rows that were cancelled on purpose may fail.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchgen.sequence import Status

if TYPE_CHECKING:
    from batchgen import events as ev
    from batchgen.sequence import Table

MOST_NAMED = 8


def not_ended(
    tables: Sequence[Table],
    reasons: Mapping[int, str],
    why: Mapping[int, str],
    events: Sequence[tuple[int, ev.Event]],
) -> list[dict[str, Any]]:
    """Rows that are not done in any of these tables of the same rows: {row, status, reason, why}.

    events: what came from outside; the rows that it cancels may fail by that.
    """
    cancelled: Collection[int] = {row for _, event in events for row in getattr(event, "rows", ())}
    found = []
    for row in range(len(tables[0])):
        status = next((one.v_status[row] for one in tables if one.v_status[row] != Status.DONE), -1)
        reason = reasons.get(row, "")
        if status < 0 or (status == Status.FAILED and reason == "cancelled" and row in cancelled):
            continue
        found.append(
            {
                "row": row,
                "status": Status(status).name.lower(),
                "reason": reason or "none",
                "why": why.get(row, ""),
            }
        )
    return found


def in_words(rows: Sequence[Mapping[str, Any]], num_rows: int) -> str:
    """How many did not end, by reason, and the rows themselves."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_reason.setdefault(f"{row['status']} ({row['reason']})", []).append(row)
    parts = []
    for reason, those in by_reason.items():
        names = ", ".join(str(row["row"]) for row in those[:MOST_NAMED])
        more = f" and {len(those) - MOST_NAMED} more" if len(those) > MOST_NAMED else ""
        why = f": {those[0]['why']}" if those[0]["why"] else ""
        parts.append(f"{len(those)} {reason}, rows {names}{more}{why}")
    return f"{len(rows)} of {num_rows} rows did NOT end: {'; '.join(parts)}"
