"""What a simulation of a job said: when sequences end and how many tokens they have then. Data; who
simulates hands it in (the backends do not know each other).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchgen.job.snapshot import Expected

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`ends_ps` [sequences], rising: when each has ended. `steps_ps`, `step_tokens` [steps]: when
    each ends, and the output tokens that are sampled by then. `kv_peak_pages`: the most that are
    leased. `range_s`: the error bar that the profile knows of, None if it knows none. `guess`: how
    long rows were thought to become, in words."""

    ends_ps: Ints
    steps_ps: Ints
    step_tokens: Ints
    kv_peak_pages: int
    guess: str
    range_s: tuple[float, float] | None = None

    @property
    def total_s(self) -> float:
        return float(self.ends_ps[-1]) / 1e12 if len(self.ends_ps) else 0.0

    def at(self, now_ps: int, output_tokens: int) -> Expected:
        """Where the simulation was at this time of the run, which has sampled so many tokens."""
        step = int(np.searchsorted(self.steps_ps, now_ps, side="right")) - 1
        slower = None
        if output_tokens and len(self.steps_ps):
            then = int(np.searchsorted(self.step_tokens, output_tokens))
            then_ps = int(self.steps_ps[min(then, len(self.steps_ps) - 1)])
            slower = now_ps / then_ps if then_ps else None
        return Expected(
            total_s=self.total_s,
            sequences=int(np.searchsorted(self.ends_ps, now_ps, side="right")),
            output_tokens=int(self.step_tokens[step]) if step >= 0 else 0,
            slower=slower,
        )


def forecast_of(
    ends_ps: Ints,
    step_ends_ps: Ints,
    step_samples: Ints,
    *,
    kv_peak_pages: int,
    guess: str,
    spread: Sequence[float] | None = None,
) -> Forecast:
    """From the columns of a run: when rows ended, when steps did, and the tokens of each step.
    spread: least and most time of the profiled machine over its median."""
    ends = np.sort(np.asarray(ends_ps, dtype=np.int64))
    order = np.argsort(step_ends_ps, kind="stable")
    total_s = float(ends[-1]) / 1e12 if len(ends) else 0.0
    return Forecast(
        ends_ps=ends,
        steps_ps=np.asarray(step_ends_ps, dtype=np.int64)[order],
        step_tokens=np.cumsum(np.asarray(step_samples, dtype=np.int64)[order]),
        kv_peak_pages=kv_peak_pages,
        guess=guess,
        range_s=None if spread is None else (total_s * spread[0], total_s * spread[1]),
    )
