"""Times of public formats as integer picoseconds, without rounding through a float."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache

PS_PER = {"s": 10**12, "ms": 10**9, "ns": 10**3}


def scaled_ps(value: int | Decimal | str, unit: str) -> int:
    """A number of `unit` (s, ms, ns) in picoseconds, nearest. ValueError if it is no number."""
    if isinstance(value, int):
        return value * PS_PER[unit]
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number") from None
    # The bound keeps 1e999 from becoming a thousand-digit integer.
    if not number.is_finite() or number.adjusted() > 20:
        raise ValueError(f"{value!r} is not a usable time")
    return int((number * PS_PER[unit]).to_integral_value())


@lru_cache(maxsize=4096)
def _whole_seconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp())


def date_ps(text: str) -> int:
    """An ISO date and time (any number of decimals, optional zone, else UTC) since 1970, in ps.

    datetime keeps microseconds only, so the fraction is read apart; the rest is cached, because
    many rows share a second. ValueError if it is no date.
    """
    text = text.strip()
    whole, dot, rest = text.partition(".")
    if not dot:
        return _whole_seconds(text) * PS_PER["s"]
    digits = len(rest) - len(rest.lstrip("0123456789"))
    fraction, zone = rest[:digits], rest[digits:]
    if not 0 < digits <= 12:
        raise ValueError(f"{text!r} is not a date and time")
    fraction_ps = int(fraction.ljust(12, "0"))
    return _whole_seconds(whole + zone) * PS_PER["s"] + fraction_ps
