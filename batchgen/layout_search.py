"""Finds the layout of a simulated job by simulating: the search of plans (`batchgen.search`) over
what engines are made of, with the run in the best layout as its result.
"""

from __future__ import annotations

from dataclasses import replace

from batchgen.report.record import RunRecord
from batchgen.search.crew import Crew
from batchgen.search.estimate import Estimator
from batchgen.search.find import Finder, Found
from batchgen.search.fit import Fitter
from batchgen.search.space import LAYOUTS, Candidate, Space
from batchgen.simjob import Progress, SimJob, Simulate
from batchgen.trace.table import Trace


def search(
    job: SimJob,
    simulate: Simulate,
    trace: Trace,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    space: Space = LAYOUTS,
) -> RunRecord:
    """The run of `job` in its best layout, whatever `job.layout` says. The record's config has what
    was tried ("layout_search") and why ("layout_reason"), and its job the options of the plan that
    were found. workers: processes that simulate; the result does not depend on their number.

    Raises UserError when no layout holds the model, and what `simulate` raises.
    """
    job = replace(job, layout=None)
    estimator = Estimator(job, simulate, trace)
    crew = Crew(estimator, workers)
    found = Finder(Fitter(job, trace, space), crew.answer).run()
    best = found.best
    if crew.best is None or crew.best[0].candidate != best.candidate:
        _, record = estimator.whole(best.candidate, None, progress)
        assert record is not None
    else:
        record = crew.best[1]
    tell(record, found)
    return record


def tell(record: RunRecord, found: Found) -> None:
    """What was tried goes into the record."""
    best, second = found.best, found.runner_up
    reason = f"{best.candidate}: the only layout that fits"
    if found.rest:
        layouts = {one.candidate.layout for one in (best, *found.rest)}
        reason = f"{best.candidate}: the fastest of {len(layouts)} layouts that fit, by simulation"
    if second is not None:
        reason += f"; {second.candidate} takes {second.seconds:.4g} s ({second.how})"
    record.config["layout_reason"] = reason
    record.config["layout_search"] = {
        "runner_up": None if second is None else second.as_dict(),
        "candidates": [one.as_dict() for one in (best, *found.rest)],
        "refused": found.refused,
    }


__all__ = ["Candidate", "Space", "search", "tell"]
