"""Placement parts whose judgement of slowness is as odd as can be, and pure: nobody may starve."""

from __future__ import annotations

from batchgen.policy.placement import LeastWork


class AlwaysSlow(LeastWork):
    """Every engine is slow as soon as one of its passes is timed."""

    def is_slow(self, measured_ps: int, expected_ps: int) -> bool:
        return True


class Flapping(LeastWork):
    """Two passes of three are slow."""

    def is_slow(self, measured_ps: int, expected_ps: int) -> bool:
        return measured_ps % 3 != 0


class Rarely(LeastWork):
    """One pass of seven is slow."""

    def is_slow(self, measured_ps: int, expected_ps: int) -> bool:
        return measured_ps % 7 == 0
