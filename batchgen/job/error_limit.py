"""How many rows may fail before a job stops. Counts nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import Unfinished, UserError

TOO_MANY = "too_many_errors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLimit:
    """At most `rows` rows, or `part` of all rows, may fail."""

    rows: int | None = None
    part: float | None = None

    def __str__(self) -> str:
        return f"{self.rows}" if self.part is None else f"{100 * self.part:g}%"

    def is_passed(self, failed: int, num_rows: int | None = None) -> bool:
        """Whether too many have failed; `num_rows` None: nobody knows yet how many there are, and
        a limit by part is not passed."""
        if self.part is None:
            return failed > (self.rows or 0)
        return num_rows is not None and failed > self.part * num_rows

    def check(self, failed: int, num_rows: int | None, where: object) -> None:
        """Raises Unfinished if too many have failed; `where` the job's folder is."""
        if self.is_passed(failed, num_rows):
            of = "" if num_rows is None or num_rows < 0 else f" of {num_rows}"
            raise Unfinished(
                f"stopped: {failed} rows{of} have failed, more than --max-errors {self}; all that "
                f"was answered is in {where}",
                remedy="go on by the same command with --resume always and a higher --max-errors, "
                "or mend the input and begin anew with --force",
                code=TOO_MANY,
            )


def check_row_timeout(seconds: float | None) -> None:
    """Raises UserError for what is no time that a row may take."""
    if seconds is not None and not 0 < seconds < 1e9:
        raise UserError(f"--row-timeout is {seconds:g}", remedy="give seconds above 0")


def parse_error_limit(max_errors: str | None, on_error: str) -> ErrorLimit | None:
    """From `--max-errors N|P%` and `--on-error row|stop`; None: any number. Raises UserError."""
    if on_error not in ("row", "stop"):
        raise UserError(f"--on-error is '{on_error:.40}'", remedy="choose one of row, stop")
    if on_error == "stop":
        if max_errors is not None:
            raise UserError(
                "--on-error stop and --max-errors exclude each other", remedy="leave one out"
            )
        return ErrorLimit(rows=0)
    if max_errors is None:
        return None
    text = max_errors.strip()
    number = text.removesuffix("%").strip()
    whole = number.isascii() and number.isdecimal() and len(number) < 16
    if text.endswith("%"):
        try:
            part = float(number) / 100 if len(number) < 16 else -1.0
        except ValueError:
            part = -1.0
        if 0 <= part <= 1:
            return ErrorLimit(part=part)
    elif whole:
        return ErrorLimit(rows=int(number))
    raise UserError(
        f"--max-errors is '{text:.40}'", remedy="give a number of rows, or a part such as 5%"
    )
