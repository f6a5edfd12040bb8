"""Units and their conversions. Time inside the runtime is int64 picoseconds.

Float sums reorder ties between identical engines; integer sums of affine pass times are exact.
int64 picoseconds reach 106 days.
"""

from __future__ import annotations

from fractions import Fraction

PS_PER_S = 1_000_000_000_000
PS_PER_US = 1_000_000
MOST_PS = (1 << 63) - 1
GIB = 1 << 30
GB = 10**9


def to_ps(seconds: float | Fraction) -> int:
    """Seconds to integer picoseconds, rounded to the nearest."""
    return round(seconds * PS_PER_S)


def to_s(picoseconds: int) -> float:
    """Integer picoseconds to seconds (for reports only, never for decisions)."""
    return picoseconds / PS_PER_S
