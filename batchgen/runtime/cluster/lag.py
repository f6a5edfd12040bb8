"""Whether one engine lags: a sequential test over its timed passes, of signs alone, for passes of
healthy engines are late by accident too, and then by any factor. It knows neither engines nor time.
"""

from __future__ import annotations

AS_EXPECTED = 1000
LATE_ON_BALANCE = 5
"""Late passes, less those in time, that show it. Where a fifth of the passes of a healthy engine
are late, each for itself, one walk of 341 that begin with a late pass gets there before it is back
at 0 (gambler's ruin: 3 / (4^5 - 1)): fewer than one timed pass of a thousand gives an alarm."""


class Lag:
    """balance: late passes less those in time, from 0, where nothing speaks against the engine any
    more, to LATE_ON_BALANCE. found: it has been there. ratios: how long the newest passes took, in
    thousandths of what they should."""

    __slots__ = ("balance", "found", "ratios")

    def __init__(self) -> None:
        self.balance, self.found = 0, False
        self.ratios: list[int] = []

    def tell(self, is_late: bool, ratio: int) -> None:
        """One more timed pass."""
        self.balance = min(self.balance + 1, LATE_ON_BALANCE) if is_late else self.balance - 1
        if self.balance == LATE_ON_BALANCE:
            self.found = True
        self.ratios.append(ratio)
        del self.ratios[:-LATE_ON_BALANCE]

    @property
    def lateness(self) -> int:
        """How long passes take, in thousandths of what they should: the median of the newest, the
        lower one of two."""
        return max(AS_EXPECTED, sorted(self.ratios)[(len(self.ratios) - 1) // 2])
