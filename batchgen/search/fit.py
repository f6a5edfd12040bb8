"""Candidates that fit, and their times by rule of thumb. It resolves names and costs, and simulates
nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, CostModel, FloatArray
from batchgen.errors import DataError, UserError
from batchgen.layout import MAX_INSTANCE_GPUS, default_layout
from batchgen.machine import Machine, gpus_of, resolve, with_way_out
from batchgen.model import load_model
from batchgen.outputs import outputs_of
from batchgen.plan import Plan
from batchgen.planning import plan_options
from batchgen.policy.presets import find_preset, part_class
from batchgen.search.space import (
    MAKE_ROOM,
    ON_CPU,
    ON_DISK,
    ON_HOST,
    PLACES,
    Axis,
    Candidate,
    Options,
    Sizes,
    Space,
    replace_values,
    too_large,
)
from batchgen.simjob import SimJob
from batchgen.trace.table import Trace

PROBES = ((1, 0), (7, 0), (64, 0), (256, 0), (0, 100), (0, 2000), (64, 512))
"""Decodes and prompt tokens per rank of passes by which candidates are told apart."""
CONTEXT = 3000
LARGE_CHUNK = 2048
"""Prompt tokens of a rank; larger passes are hardly faster per token unless weights stream."""
STEP = 1.4  # from row to row that ends, of those that are left, in guesses
ROOMY = 0.5
"""Part of the KV pools that all rows may take, at their longest, so that memory decides nothing:
the other half is for pools that are not equally full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A candidate that fits. guess_s: its time by rule of thumb, which only orders candidates and
    leaves hopeless ones out. like: equal for candidates whose passes are those of each other.
    pages: on the device and on the host of an engine. crowded: all rows at their longest would fill
    more than `ROOMY` of the KV pools."""

    candidate: Candidate
    guess_s: float
    like: tuple[Any, ...]
    pages: tuple[int, int]
    crowded: bool

    def covers(self, other: Fitted) -> bool:
        """Whether nothing speaks for the other: the same passes, no larger pools."""
        return self.like == other.like and all(
            mine >= theirs for mine, theirs in zip(self.pages, other.pages, strict=True)
        )

    @property
    def as_good(self) -> str:
        """Why one that is covered is left out."""
        return f"passes are those of {self.candidate}, pools no larger"


class Fitter:
    """Resolves candidates of a job and a load; `refused` gets why some do not fit."""

    def __init__(self, job: SimJob, trace: Trace, space: Space) -> None:
        preset = find_preset(job.policy)
        options = plan_options(dict(job.overrides), preset.plan)  # mistakes of all of them
        self.job, self.trace, self.space = job, trace, space
        self.model = load_model(job.model)
        self.gpu, self.per_node = gpus_of(job)
        self.refused: dict[str, str] = {}
        self.fixed: dict[str, object] = {f"plan.{k}": v for k, v in preset.plan.items()}
        self.fixed |= {key: text for key, text in job.overrides if key.startswith("plan.")}
        for name in ("token_budget", "max_num_seqs"):
            if getattr(preset, name):  # part of what the policy is
                self.fixed.setdefault(f"plan.{name}", getattr(preset, name))
        outputs = outputs_of(job, trace, self.model, options)
        self._prompts = trace.prompt_tokens.astype(float)
        self._outputs = outputs.tokens.astype(float)
        part = dict(job.overrides).get("admission.part", preset.parts["admission"])
        # Room for the longest answer that every row may give, or for what it does give.
        keeps = getattr(part_class("admission", part), "reserves", False)
        self._most = float(
            self._prompts.sum() + (outputs.budgets if keeps else self._outputs).sum()
        )
        self._ends = _ends_of(self._outputs)
        self._alone: dict[tuple[Any, ...], int] = {}
        self._short: set[str] = set()  # refused for want of memory
        self._first: UserError | None = None

    # -- which ------------------------------------------------------------------------------------

    def layouts(self) -> list[Fitted]:
        """Every layout that fits, in HBM unless the job or its policy says something else; those
        alike in all of it once. Where nothing fits in HBM, or all that does is short of memory,
        others with places on the host; where hosts hold nothing either, on their disks. Raises
        UserError when there is none."""
        plain = [
            Candidate(layout=layout)
            for layout in self.space.layouts(self.model, self.job.gpus, self.per_node)
        ]
        found = self._fitting(plain)
        if self.space.places and not PLACES & self.fixed.keys():
            lacking = [one for one in plain if str(one) in self._short and one.layout.pp == 1]
            if not found:
                for places in (ON_HOST, ON_DISK):
                    found = found or self._fitting(one.having(p) for p in places for one in lacking)
            elif self.space.more_places and all(one.crowded for one in found):
                found += self._fitting(one.having(p) for p in self._least_moved for one in lacking)
        if found:
            return found
        first = self._first
        assert first is not None
        try:
            if first.code == "does_not_fit":  # this one says it better, if it does not fit either
                default_layout(self.model, self.gpu, self.job.gpus, self.per_node)
            raise first
        except UserError as error:
            raise with_way_out(error, replace(self.job, layout=None), self.trace) from None

    @property
    def _least_moved(self) -> list[Options]:
        """Places for weights that nearly fit: only what does not fit crosses the host link, or with
        dense layers all of them."""
        least = "spill" if self.model.is_moe else "layers"
        return [place for place in ON_HOST if dict(place).get("plan.weights") == least]

    def _fitting(self, asked: Iterable[Candidate]) -> list[Fitted]:
        """Those that fit, but for those that another one covers."""
        found: dict[tuple[Any, ...], list[Fitted]] = {}
        for one in asked:
            if found and too_large(one.layout):
                self.refused[str(one)] = f"engines of up to {MAX_INSTANCE_GPUS} GPUs hold the model"
                continue
            try:
                fitted = self.fit(one)
            except DataError:
                raise  # a file is bad for all of them
            except UserError as error:
                self._first = self._first or error
                self.refused[str(one)] = str(error)
                if error.code == "does_not_fit":
                    self._short.add(str(one))
                continue
            kept = []
            for other in found.setdefault(fitted.like, []):
                if other.covers(fitted):
                    self.refused[str(one)] = other.as_good
                    break
                if fitted.covers(other):
                    self.refused[str(other.candidate)] = fitted.as_good
                else:
                    kept.append(other)
            else:
                found[fitted.like] = [*kept, fitted]
        return [one for alike in found.values() for one in alike]

    def axes(self, candidate: Candidate, *, crowded: bool) -> list[Axis]:
        """Along which a candidate may change. Memory is only made where rows may lack it; what CPUs
        read beside the GPU is a gain of its own."""
        plain = Candidate(layout=candidate.layout, options=candidate.places)
        plan = self._resolve(plain).plan
        sizes = Sizes(
            rows=len(self.trace),
            token_budget=plan.token_budget,
            max_num_seqs=plan.max_num_seqs,
            sub_batches=self.job.profile is None and self.job.costs == "roofline",
        )
        found = self.space.axes(self.model, candidate.layout, sizes, self.fixed)
        if crowded:
            return found
        beside = replace_values(found, "places", (ON_CPU,))
        return [axis for axis in beside if axis.name not in MAKE_ROOM]

    def alone_s(self) -> float:
        """A bound: no plan ends before the row with the longest answer, alone in the fastest layout
        that fits. Raises UserError when none does."""
        passes = max(float(self._outputs.max(initial=0)) - 1, 0.0)
        if self.job.body is not None:
            passes = 0.0
        least = min(self._alone_ps(self._resolve(one.candidate)) for one in self.layouts())
        return passes * least / PS_PER_S

    # -- one --------------------------------------------------------------------------------------

    def _resolve(self, candidate: Candidate) -> Machine:
        return resolve(candidate.of(self.job), self.trace.expert_skew)

    def fit(self, candidate: Candidate) -> Fitted:
        """Raises UserError where the candidate does not fit, or is none."""
        machine = self._resolve(candidate)
        plan, cost = machine.plan, machine.planner.home
        pools = sum(spec.num_ranks * spec.hbm_pages for spec in plan.engines) * plan.page_tokens
        return Fitted(
            candidate=candidate,
            guess_s=self._guess_s(machine),
            like=like(plan, cost),
            pages=(plan.engines[0].hbm_pages, plan.engines[0].host_pages),
            crowded=self._most > ROOMY * pools,
        )

    def _guess_s(self, machine: Machine) -> float:
        """Prompts in full passes, then decodes of all rows together, fewer and fewer of them, each
        on the engines that do it; or both at once."""
        if not len(self._prompts):
            return 0.0
        roles = [spec.role for spec in machine.plan.engines]
        part = roles.count("prefill") / len(roles)
        prefill_s = self._prefill_s(machine, part or 1.0)
        decode_s = self._decode_s(machine, 1.0 - part)
        apart = bool(part) or machine.planner.home.streams  # weights that stream serve both
        return max(prefill_s, decode_s) if apart else prefill_s + decode_s

    def _prefill_s(self, machine: Machine, part: float) -> float:
        """All prompts in full passes, evenly over a part of the engines."""
        plan, cost = machine.plan, machine.planner.home
        chunk = plan.token_budget
        if not cost.streams:
            chunk = min(chunk, LARGE_CHUNK)
        chunk = min(chunk, int(self._prompts.sum()))
        each = cost.pass_one_ps(0, 0, chunk, int(chunk * self._prompts.mean()))
        ranks = part * plan.engines[0].num_ranks * len(plan.engines)
        return float(self._prompts.sum() / chunk * each / ranks) / PS_PER_S

    def _decode_s(self, machine: Machine, part: float) -> float:
        """All rows decode at once, evenly over the ranks of a part of the engines, until they end;
        where memory or seats hold fewer they take turns. The last one may have a faster layout."""
        plan, cost = machine.plan, machine.planner.home
        engine = plan.engines[0]
        ranks = part * engine.num_ranks * len(plan.engines)
        pool = engine.hbm_pages * plan.page_tokens
        prompt, seats = float(self._prompts.mean()), min(plan.max_num_seqs, plan.token_budget)
        alone = self._alone_ps(machine)
        total, before = 0.0, 0.0
        for upto, running in self._ends:
            context = prompt + (before + upto) / 2
            rows = running / ranks
            most = max(1.0, min(float(seats), pool / context))
            if running <= 1:
                each = float(alone)
            else:
                held = max(1, ceil(min(rows, most)))
                turns = max(rows, 1.0) / held if rows > most else 1.0
                each = turns * cost.pass_one_ps(held, int(held * context), samples=held)
            total += (upto - before) * each
            before = upto
        return total / PS_PER_S

    def _alone_ps(self, machine: Machine) -> int:
        """A decode pass of one row, in the fastest layout that the tail may have."""
        key = machine.layout.stage, machine.layout.pp, machine.plan.b_moe, machine.planner.fixed
        if key not in self._alone:
            row, idle = (1, 1, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 0, 0)
            costs = [machine.planner.home, *(tail for tail, _ in machine.planner.tails())]
            self._alone[key] = min(
                one.time_ps([row] + [idle] * (one.num_ranks - 1)) for one in costs
            )
        return self._alone[key]


def _ends_of(outputs: FloatArray) -> list[tuple[float, float]]:
    """(tokens, rows that decode until then, on average from the step before) of steps from the
    first end to the last; each ends a part of the rows that are left, so that the tail is as fine.
    """
    ordered, left, found = np.sort(outputs), float(len(outputs)), []
    while left >= 1:
        after = left / STEP if left > 1 else 0.0
        last = min(len(ordered) - 1, max(0, round(len(ordered) - after) - 1))
        found.append((float(ordered[last]), (left + after) / 2 if after >= 1 else 1.0))
        left = after
    return found


def like(plan: Plan, cost: CostModel) -> tuple[Any, ...]:
    """Equal for plans whose passes are those of each other."""
    times = [
        cost.time_ps([(rows, rows * CONTEXT, tokens, tokens**2, 0, rows, 0)] * cost.num_ranks)
        for rows, tokens in PROBES
    ]
    engine, roles = plan.engines[0], [spec.role for spec in plan.engines]
    stages = getattr(cost, "num_stages", 1)
    limits = plan.token_budget, plan.max_num_seqs, roles.count("prefill"), stages
    return len(plan.engines), engine.num_ranks, *limits, *times, cost.copy_ps(1000, "host")
