"""What a candidate takes, by simulating the load or a share of it. It chooses nothing.

Engines are alike and independent, so a few of them with their share of the rows stand for all; of
engines with roles, a part in which as many prefill for each that decodes. Nothing depends on how
long this takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np

from batchgen.errors import UserError
from batchgen.machine import gpus_of
from batchgen.report.metrics import bct_s, tail10_s
from batchgen.report.record import STATUS_FAILED, RunRecord
from batchgen.search.space import Candidate
from batchgen.simjob import Progress, SimJob, Simulate
from batchgen.trace.table import Trace
from batchgen.units import PS_PER_S

LEAST_ROWS = 600  # of a share; engines are added until it has them
MOST_ROWS = 2000  # of a share; of more, every second, third, ... is simulated
TAIL = 0.2  # of the time of a share, at most, when it is given up: a tail is not scaled up


@dataclass(slots=True, kw_only=True)
class Estimate:
    """What a candidate takes. how: "simulated", "estimate" (from a share of the load), "at least"
    (it was given up by then), "ideal passes" (its guess, nothing was simulated). share_s: of an
    estimate before it is scaled by what whole loads took. failed: rows that did not end well,
    scaled up from the share. events: how much was simulated."""

    candidate: Candidate
    seconds: float
    how: str
    failed: int = 0
    share_s: float | None = None
    events: int = 0

    @property
    def key(self) -> tuple[int, float]:
        """Candidates under which more rows end well come first, then faster ones."""
        return self.failed, self.seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "layout": str(self.candidate.layout),
            "options": dict(self.candidate.options),
            "seconds": self.seconds,
            "how": self.how,
            "failed_rows": self.failed,
        }


class GivenUp(Exception):
    """The clock of a simulation has passed its limit."""


class Estimator:
    """Estimates for one job and load."""

    def __init__(self, job: SimJob, simulate: Simulate, trace: Trace) -> None:
        self.job, self.simulate, self.trace = job, simulate, trace
        _, self.per_node = gpus_of(job)
        # Rows of a body of one's own, and so many engines with a role, cannot be taken apart.
        self.whole_only = job.body is not None or "plan.prefill_engines" in dict(job.overrides)

    def shares_are_whole(self, candidate: Candidate) -> bool:
        """Whether an estimate is a simulation of the whole load."""
        engines, rows = self.share(candidate)
        plain = self.job.faults is None and self.job.log == "off"
        return plain and engines == candidate.layout.num_engines and len(rows) == len(self.trace)

    def estimate(self, candidate: Candidate, limit_s: float | None) -> Estimate:
        """From its share of the load, or from the load where that is all of it; "at least" once the
        time would be more than `limit_s`."""
        if self.shares_are_whole(candidate):
            return self.whole(candidate, limit_s)[0]
        engines, rows = self.share(candidate)
        scale = len(self.trace) * engines / candidate.layout.num_engines / max(len(rows), 1)
        try:
            until = limit_s and limit_s / ((1 - TAIL) * scale + TAIL)
            record = self._part(candidate, engines, rows, until)
        except GivenUp:
            assert limit_s is not None
            return Estimate(candidate=candidate, seconds=limit_s, how="at least")
        except UserError:
            # It names the row as it is numbered in the load.
            return self.whole(candidate, limit_s)[0]
        tail = tail10_s(record)  # as long for many rows as for few
        seconds = (bct_s(record) - tail) * scale + tail
        return Estimate(
            candidate=candidate,
            seconds=seconds,
            how="estimate",
            failed=round(_failed(record) * len(self.trace) / max(len(rows), 1)),
            share_s=seconds,
            events=int(record.config["events"]),
        )

    def whole(
        self, candidate: Candidate, limit_s: float | None, progress: Progress | None = None
    ) -> tuple[Estimate, RunRecord | None]:
        """The job itself in this candidate, and its record unless it was given up."""
        job = candidate.of(self.job)
        try:
            record = self.simulate(job, progress=_limited(limit_s, progress), trace=self.trace)
        except GivenUp:
            assert limit_s is not None
            return Estimate(candidate=candidate, seconds=limit_s, how="at least"), None
        found = Estimate(
            candidate=candidate,
            seconds=bct_s(record),
            how="simulated",
            failed=_failed(record),
            events=int(record.config["events"]),
        )
        return found, record

    def share(self, candidate: Candidate) -> tuple[int, np.ndarray[Any, Any]]:
        """Engines of a stand-in, and the rows that they would get in turns: those engines that get
        the longest row, which may end last of all. Of very many rows a part. Loads that arrive over
        time stay whole: a thinner one would wait less."""
        layout = candidate.layout
        total, prefill = len(self.trace), candidate.prefill_engines
        # Engines with roles: groups of them that have the same split.
        every = gcd(layout.num_engines, prefill) if prefill else layout.num_engines
        group = layout.num_engines // every
        groups = every if self.whole_only else min(every, -(-LEAST_ROWS * every // max(total, 1)))
        per_node = max(1, self.per_node // (layout.gpus_per_engine * group))
        # Whole nodes, whose host memory and links are then shared by as many as in the whole.
        groups = min(-(-groups // per_node) * per_node, every)
        longest = int(self.trace.output_tokens.argmax()) if total else 0
        rows = np.flatnonzero((np.arange(total) - longest) % every < groups)
        if self.whole_only or self.job.arrivals != "batch":
            return groups * group, rows
        step = max(1, len(rows) // MOST_ROWS)
        return groups * group, rows[int(np.searchsorted(rows, longest)) % step :: step]

    def _part(
        self, candidate: Candidate, engines: int, rows: np.ndarray[Any, Any], limit_s: float | None
    ) -> RunRecord:
        """A run of a share. Troubles to come are not known beforehand."""
        given, layout = self.job.max_output_tokens, candidate.layout
        prefill = candidate.prefill_engines * engines // layout.num_engines
        stand_in = replace(candidate, layout=replace(layout, num_engines=engines))
        if prefill:
            stand_in = stand_in.having((("plan.prefill_engines", str(prefill)),))
        job = replace(
            stand_in.of(self.job),
            gpus=layout.gpus_per_engine * engines,
            gpus_per_node=self.per_node,
            max_output_tokens=given if given is not None else self.trace.longest_output,
            faults=None,
            log="off",
            limit=None,
        )
        share = self.trace.take(rows)
        return self.simulate(job, progress=_limited(limit_s), trace=share, part=True)


def _failed(record: RunRecord) -> int:
    return int((record.rows["status"] == STATUS_FAILED).sum())


def _limited(limit_s: float | None, then: Progress | None = None) -> Progress | None:
    """A progress callback that gives up when the simulated clock passes the limit."""
    if limit_s is None:
        return then
    limit_ps = limit_s * PS_PER_S

    def look(now_ps: int, rows_done: int, rows_total: int) -> None:
        if now_ps > limit_ps:
            raise GivenUp
        if then is not None:
            then(now_ps, rows_done, rows_total)

    return look
