"""Finds the layout of a simulated job by simulating: shares of the load for the candidates, then
the best of them whole. It knows no simulator: `simulate` is passed in, and decides nothing.

Engines are alike and independent, so a few of them with their share of the rows stand for all.
Candidates come by the time that their ideal passes take (`guess_s`, which no simulation has come
below); one whose ideal is slower than the best estimate is not simulated, one whose clock has
passed `CUT` times that is not followed further. What wins by estimate is simulated whole, and has
to hold what it promised against the estimates behind it. Nothing depends on how long this takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from batchgen.cost.api import CostModel, FloatArray
from batchgen.errors import DataError, UserError
from batchgen.layout import MAX_INSTANCE_GPUS, Layout, default_layout
from batchgen.layouts import candidates
from batchgen.machine import gpus_of, resolve, with_way_out
from batchgen.model import load_model
from batchgen.plan import Plan
from batchgen.planning import plan_options
from batchgen.policy.presets import find_preset
from batchgen.report.metrics import bct_s, tail10_s
from batchgen.report.record import STATUS_FAILED, RunRecord
from batchgen.simjob import Progress, SimJob, Simulate
from batchgen.trace.table import Trace, output_budgets
from batchgen.units import PS_PER_S

LEAST_ROWS = 600  # of a share; engines are added until it has them
MOST_ROWS = 2000  # of a share; of more, every second, third, ... is simulated
CUT = 1.2
TAIL = 0.2  # of the time of a share, at most, when it is given up: a tail is not scaled up
MOST_ESTIMATES = 12
MOST_WHOLE = 3
"""Simulations of the whole load: of the winner, and of those whose estimates are below its time."""
LARGE_LOAD = 50_000
"""Rows from which on only the winner is simulated whole: shares of so many rows are alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layout that fits, and its time by rule of thumb, which only orders the candidates."""

    layout: Layout
    guess_s: float


@dataclass(slots=True, kw_only=True)
class Estimate:
    """What a layout takes. how: "simulated", "estimate" (from a share of the load), "at least" (it
    was given up by then), "ideal passes" (its guess, nothing was simulated). failed: rows that did
    not end well, scaled up from the share."""

    layout: Layout
    seconds: float
    how: str
    failed: int = 0

    @property
    def key(self) -> tuple[int, float]:
        """Layouts under which more rows end well come first, then faster ones."""
        return self.failed, self.seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "layout": str(self.layout),
            "seconds": self.seconds,
            "how": self.how,
            "failed_rows": self.failed,
        }


class _GivenUp(Exception):
    """The clock of a simulation has passed its limit."""


def search(
    job: SimJob, simulate: Simulate, trace: Trace, *, progress: Progress | None = None
) -> RunRecord:
    """The run of `job` in its best layout, whatever `job.layout` says. The record's
    config has what was tried ("layout_search") and why ("layout_reason").

    Raises UserError when no layout holds the model, and what `simulate` raises.
    """
    return _Search(job, simulate, trace, progress).run()


class _Search:
    def __init__(
        self, job: SimJob, simulate: Simulate, trace: Trace, progress: Progress | None
    ) -> None:
        self.job, self.simulate, self.trace, self.progress = job, simulate, trace, progress
        _, self.per_node = gpus_of(job)
        # Rows of a body of one's own, and engines with roles, cannot be taken apart.
        self.whole_only = job.body is not None or "plan.prefill_engines" in dict(job.overrides)
        self.refused: dict[str, str] = {}
        self.shares: dict[str, float] = {}  # estimates in seconds, before they are scaled
        self.best: tuple[Estimate, RunRecord] | None = None  # of whole simulations

    def run(self) -> RunRecord:
        fitting = fitting_layouts(self.job, self.trace, self.per_node, self.refused)
        fitting.sort(key=lambda one: one.guess_s)
        found: list[Estimate] = []
        for one in fitting:
            limit = self._limit(found)
            hopeless = limit is not None and one.guess_s > limit
            if len(fitting) == 1 or len(found) >= MOST_ESTIMATES or hopeless:
                found.append(Estimate(layout=one.layout, seconds=one.guess_s, how="ideal passes"))
            else:
                found.append(self._estimate(one.layout, limit))
        for _ in range(MOST_WHOLE if len(self.trace) < LARGE_LOAD else 1):
            tried = [e for e in found if e.how != "ideal passes"] or found
            first = min(tried, key=lambda e: e.key)
            if first.how == "simulated":
                break
            known = [e.seconds for e in tried if e.how == "simulated" and e.failed <= first.failed]
            found[found.index(first)] = self._whole(first.layout, min(known, default=None))
        self._scale(found)
        assert self.best is not None
        best, record = self.best
        rest = [e for e in found if e is not best]
        rest.sort(key=lambda e: (e.how == "ideal passes", e.key))
        _tell(record, best, rest, self.refused)
        return record

    def _limit(self, found: list[Estimate]) -> float | None:
        """The clock at which a candidate is given up; None while no layout serves all rows."""
        best = min(found, key=lambda e: e.key, default=None)
        return None if best is None or best.failed else CUT * best.seconds

    def _scale(self, found: list[Estimate]) -> None:
        """Shares end a little earlier than all engines together: what is left of estimates is
        multiplied by the largest time of a whole load over that of its share."""
        whole = [e for e in found if e.how == "simulated" and str(e.layout) in self.shares]
        over = max((e.seconds / self.shares[str(e.layout)] for e in whole), default=1.0)
        for one in found:
            if one.how == "estimate":
                one.seconds *= max(over, 1.0)

    # -- one layout -------------------------------------------------------------------------------

    def _estimate(self, layout: Layout, limit: float | None) -> Estimate:
        """From its share of the load, or from the load where that is all of it."""
        engines, rows = self._share(layout)
        plain = self.job.faults is None and self.job.log == "off"
        if plain and engines == layout.num_engines and len(rows) == len(self.trace):
            return self._whole(layout, limit)
        scale = len(self.trace) * engines / layout.num_engines / max(len(rows), 1)
        try:
            until = limit and limit / ((1 - TAIL) * scale + TAIL)
            record = self._part(layout, engines, rows, until)
        except _GivenUp:
            assert limit is not None
            return Estimate(layout=layout, seconds=limit, how="at least")
        except UserError:
            return self._whole(layout, limit)  # it names the row as it is numbered in the load
        failed = round(_failed(record) * len(self.trace) / max(len(rows), 1))
        tail = tail10_s(record)  # as long for many rows as for few
        seconds = (bct_s(record) - tail) * scale + tail
        self.shares[str(layout)] = seconds
        return Estimate(layout=layout, seconds=seconds, how="estimate", failed=failed)

    def _share(self, layout: Layout) -> tuple[int, np.ndarray[Any, Any]]:
        """Engines of a stand-in, and the rows that they would get in turns: those engines that get
        the longest row, which may end last of all. Of very many rows a part. Loads that arrive over
        time stay whole: a thinner one would wait less."""
        total, every = len(self.trace), layout.num_engines
        engines = every if self.whole_only else min(every, -(-LEAST_ROWS * every // max(total, 1)))
        per_node = max(1, self.per_node // layout.gpus_per_engine)
        if engines > per_node:  # whole nodes
            engines = min(-(-engines // per_node) * per_node, every)
        longest = int(self.trace.output_tokens.argmax())
        rows = np.flatnonzero((np.arange(total) - longest) % every < engines)
        if self.whole_only or self.job.arrivals != "batch":
            return engines, rows
        step = max(1, len(rows) // MOST_ROWS)
        return engines, rows[int(np.searchsorted(rows, longest)) % step :: step]

    def _part(
        self,
        layout: Layout,
        engines: int,
        rows: np.ndarray[Any, Any],
        limit_s: float | None,
    ) -> RunRecord:
        """A run of a share. Troubles to come are not known beforehand."""
        given = self.job.max_output_tokens
        job = replace(
            self.job,
            layout=str(replace(layout, num_engines=engines)),
            gpus=layout.gpus_per_engine * engines,
            gpus_per_node=self.per_node,
            max_output_tokens=given if given is not None else self.trace.longest_output,
            faults=None,
            log="off",
            limit=None,
        )
        share = self.trace.take(rows)
        return self.simulate(job, progress=_limited(limit_s), trace=share, part=True)

    def _whole(self, layout: Layout, limit_s: float | None) -> Estimate:
        """The job itself in this layout."""
        job = replace(self.job, layout=str(layout))
        try:
            record = self.simulate(job, progress=_limited(limit_s, self.progress), trace=self.trace)
        except _GivenUp:
            assert limit_s is not None
            return Estimate(layout=layout, seconds=limit_s, how="at least")
        one = Estimate(
            layout=layout, seconds=bct_s(record), how="simulated", failed=_failed(record)
        )
        if self.best is None or one.key < self.best[0].key:
            self.best = one, record
        return one


def _tell(record: RunRecord, best: Estimate, rest: list[Estimate], refused: dict[str, str]) -> None:
    """What was tried goes into the record."""
    second = next((e for e in rest if e.how != "ideal passes"), None)
    reason = f"{best.layout}: the only layout that fits"
    if rest:
        reason = f"{best.layout}: the fastest of {1 + len(rest)} layouts that fit, by simulation"
    if second is not None:
        reason += f"; {second.layout} takes {second.seconds:.4g} s ({second.how})"
    record.config["layout_reason"] = reason
    record.config["layout_search"] = {
        "runner_up": None if second is None else second.as_dict(),
        "candidates": [e.as_dict() for e in (best, *rest)],
        "refused": refused,
    }


def _failed(record: RunRecord) -> int:
    return int((record.rows["status"] == STATUS_FAILED).sum())


def _limited(limit_s: float | None, then: Progress | None = None) -> Progress | None:
    """A progress callback that gives up when the simulated clock passes the limit."""
    if limit_s is None:
        return then
    limit_ps = limit_s * PS_PER_S

    def look(now_ps: int, rows_done: int, rows_total: int) -> None:
        if now_ps > limit_ps:
            raise _GivenUp
        if then is not None:
            then(now_ps, rows_done, rows_total)

    return look


# -- candidates -----------------------------------------------------------------------------------


def fitting_layouts(
    job: SimJob, trace: Trace, gpus_per_node: int, refused: dict[str, str]
) -> list[Candidate]:
    """Layouts that the model, the plan and the costs take, those alike in all of it once; `refused`
    gets why the others do not. Raises UserError when there is none."""
    plan_options(dict(job.overrides), find_preset(job.policy).plan)  # mistakes of all layouts
    model, (gpu, _) = load_model(job.model), gpus_of(job)
    budgets = output_budgets(trace, job.max_output_tokens)
    outputs = np.minimum(trace.output_tokens, budgets).astype(float)
    found: dict[tuple[Any, ...], Candidate] = {}
    first: UserError | None = None
    for layout in candidates(model, job.gpus, gpus_per_node):
        if found and layout.gpus_per_engine > MAX_INSTANCE_GPUS:
            refused[str(layout)] = f"engines of up to {MAX_INSTANCE_GPUS} GPUs hold the model"
            continue
        try:
            machine = resolve(replace(job, layout=str(layout)), trace.expert_skew)
        except DataError:
            raise  # a file is bad for all of them
        except UserError as error:
            first = first or error
            refused[str(layout)] = str(error)
            continue
        plan, cost = machine.plan, machine.planner.home
        like = _like(plan, cost)
        if like in found:
            refused[str(layout)] = f"passes and pools are those of {found[like].layout}"
            continue
        tails = [tail for tail, _ in machine.planner.tails()]
        guess_s = _guess_s(plan, cost, tails, trace.prompt_tokens.astype(float), outputs)
        found[like] = Candidate(layout=layout, guess_s=guess_s)
    if not found:
        assert first is not None
        try:
            if first.code == "does_not_fit":
                default_layout(model, gpu, job.gpus, gpus_per_node)  # says it better, if it does
            raise first
        except UserError as error:
            raise with_way_out(error, replace(job, layout=None), trace) from None
    return list(found.values())


PROBES = ((1, 0), (7, 0), (64, 0), (256, 0), (0, 100), (0, 2000), (64, 512))
"""Decodes and prompt tokens per rank of passes by which layouts are told apart."""
CONTEXT = 3000
LARGE_CHUNK = 2048  # prompt tokens of a rank; larger passes are hardly faster per token


def _like(plan: Plan, cost: CostModel) -> tuple[Any, ...]:
    """Equal for layouts that a simulation cannot tell apart."""
    times = [
        cost.time_ps([(rows, rows * CONTEXT, tokens, tokens**2, 0, rows, 0)] * cost.num_ranks)
        for rows, tokens in PROBES
    ]
    engine = plan.engines[0]
    sizes = len(plan.engines), engine.num_ranks, engine.hbm_pages, engine.host_pages
    return *sizes, *times, cost.copy_ps(1000, "host")


def _guess_s(
    plan: Plan,
    cost: CostModel,
    tails: Sequence[CostModel],
    prompts: FloatArray,
    outputs: FloatArray,
) -> float:
    """Prompts in full passes, then decodes in passes of as many rows as memory and seats hold; the
    longest answer alone, in the fastest layout that its tail may have, if that takes longer."""
    if not len(prompts):
        return 0.0
    engine = plan.engines[0]
    ranks = engine.num_ranks * len(plan.engines)
    context = float(prompts.mean() + outputs.mean() / 2)
    seats = min(plan.max_num_seqs, plan.token_budget, -(-len(prompts) // ranks))
    rows = max(1, min(seats, int(engine.hbm_pages * plan.page_tokens / context)))
    chunk = min(plan.token_budget, LARGE_CHUNK)
    prefill = cost.pass_one_ps(0, 0, chunk, int(chunk * prompts.mean()))
    decode = cost.pass_one_ps(rows, int(rows * context), samples=rows)
    passes = prompts.sum() / chunk * prefill + outputs.sum() / rows * decode
    row, idle = (1, 1, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 0, 0)
    alone = min(one.time_ps([row] + [idle] * (one.num_ranks - 1)) for one in (cost, *tails))
    longest = float(outputs.max() - 1) * alone
    return max(float(passes) / ranks, longest) / PS_PER_S
