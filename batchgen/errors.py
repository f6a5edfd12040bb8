"""The exception tree. Users see `UserError` as one line; everything else is our fault.

BatchgenError
├── UserError          bad input or usage; exit code 2; the message names thing and remedy
│   ├── DataError      a line of a file; adds path, line and field
│   └── Unfinished     a job stopped early and can go on; exit code 3
├── IllegalTransition  the runtime broke its own contract; carries the row's story
└── ReplayMismatch     validate: the first event whose actions differ
"""

from __future__ import annotations

from batchgen.oneline import brief

MOST_MESSAGE = 360  # characters of a message, and of a remedy
MOST_REMEDY = 300


class BatchgenError(Exception):
    """Base of every error raised on purpose."""

    code = "internal"


class UserError(BatchgenError):
    """A mistake in what the user gave us. `message` is one line, `remedy` says what to do next.

    Both may quote what the user gave: where that is too long to be read its middle is left out.
    """

    code = "usage"

    def __init__(self, message: str, *, remedy: str = "", code: str = "usage") -> None:
        self.message = brief(message, MOST_MESSAGE)
        self.remedy = brief(remedy, MOST_REMEDY)
        self.code = code
        super().__init__(f"{self.message}; {self.remedy}" if remedy else self.message)


class DataError(UserError):
    """A bad line or field of an input file."""

    def __init__(
        self,
        message: str,
        *,
        path: str,
        line: int | None = None,
        field: str | None = None,
        remedy: str = "",
        code: str = "bad_data",
    ) -> None:
        self.path, self.line, self.field = path, line, field
        where = path if line is None else f"{path}:{line}"
        what = f"{where}: {message}" if field is None else f"{where}: field '{field}': {message}"
        super().__init__(what, remedy=remedy, code=code)


class Unfinished(UserError):
    """A job stopped before its end, and what it has achieved is kept: it can go on."""


class IllegalTransition(BatchgenError):
    """An invariant of the runtime was about to break; the text tells the row's story."""

    code = "illegal_transition"


class ReplayMismatch(BatchgenError):
    """A replayed event led to other actions than the recorded ones."""

    code = "replay_mismatch"
