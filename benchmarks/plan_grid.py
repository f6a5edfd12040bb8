"""Random jobs with small spaces of plans, and the best of every plan of a space by simulating each.

A case draws a model, machines, a policy, a load and which axes are searched, so that the product of
them can be enumerated. A simulation is stopped once its clock has passed the best time so far:
it cannot be the best then. Of plans whose passes and pools are the same one is simulated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgen.errors import UserError
from batchgen.search.crew import Ask, Crew
from batchgen.search.estimate import Estimate, Estimator
from batchgen.search.find import Finder, Found
from batchgen.search.fit import Fitter
from batchgen.search.space import (
    B_ATTN,
    B_MOE,
    BUDGETS,
    MORE_SEATS,
    ON_HOST,
    Candidate,
    Space,
    everything,
)
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob
from batchgen.trace.table import Trace, make_trace

MODELS = (
    *("llama-3.1-8b", "qwen3-8b", "qwen3-32b", "llama-3.1-70b", "qwen3-30b-a3b", "mixtral-8x7b"),
    *("gpt-oss-20b", "gpt-oss-120b"),
)
GPUS = ("a100", "h100", "h200", "h20", "b200", "a5000", "rtx-4090", "rtx-pro-6000")
POLICIES = ("vllm", "batchgen", "orca", "static", "sglang-opt")
ROUND = 16
MOST_WORK = 200_000
LEAST_PLANS = 16  # fewer are no search


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A job, its load and what may be chosen."""

    job: SimJob
    trace: Trace
    space: Space


def draw(
    rng: random.Random, trace_path: str, *, most_work: int = MOST_WORK, most_rows: int = 4000
) -> Case:
    """A case of at least `LEAST_PLANS` plans, and at most `most_work` rows in all of them together.
    trace_path: any file, whose digest a record wants; the rows are not read from it."""
    while True:
        case = _draw(rng, trace_path, most_rows)
        most = most_work // len(case.trace)
        try:
            count = sum(1 for _ in plans(case, most + 1))
        except UserError:
            continue  # fits nowhere
        if LEAST_PLANS <= count <= most:
            return case


def _draw(rng: random.Random, trace_path: str, most_rows: int) -> Case:
    numbers = np.random.default_rng(rng.randrange(2**32))
    rows = round(most_rows / 40 * 40 ** rng.random())
    prompt, output = rng.uniform(5.0, 7.5), rng.uniform(3.5, 6.5)
    spread = rng.uniform(0.2, 1.2)
    prompts = np.clip(numbers.lognormal(prompt, spread, rows), 1, 12_000).astype(int)
    outputs = np.clip(numbers.lognormal(output, spread, rows), 1, 3_000).astype(int)
    job = SimJob(
        trace=trace_path,
        model=rng.choice(MODELS),
        gpu=rng.choice(GPUS),
        gpus=rng.choice((1, 2, 4, 8, 8, 16, 32)),
        policy=rng.choice(POLICIES),
    )
    axes = set(rng.sample(("roles", "places", "budgets", "b_moe", "b_attn", "seats"), k=3))
    space = Space(
        pipelines=rng.random() < 0.8,
        roles="roles" in axes,
        more_places="places" in axes,
        budgets=BUDGETS if "budgets" in axes else (),
        b_moe=B_MOE if "b_moe" in axes else (),
        b_attn=B_ATTN if "b_attn" in axes else (),
        more_seats=MORE_SEATS if "seats" in axes else 0,
    )
    trace = make_trace(name="drawn", prompt_tokens=prompts, output_tokens=outputs)
    return Case(job=job, trace=trace, space=space)


def plans(case: Case, most: int) -> Iterator[Candidate]:
    """The first so many plans of the space that fit, those alike once: every layout with every
    place, and the product of all other axes. Raises UserError when nothing fits."""
    fitter = Fitter(case.job, case.trace, case.space)
    layouts = case.space.layouts(fitter.model, case.job.gpus, fitter.per_node)
    in_hbm = any(not one.candidate.places for one in fitter.layouts())
    seen: set[Any] = set()
    for layout in layouts:
        starts = [Candidate(layout=layout)]
        if case.space.more_places or (case.space.places and not in_hbm):
            starts += [Candidate(layout=layout).having(place) for place in ON_HOST]
        for start in starts:
            try:
                axes = fitter.axes(start, crowded=True)
            except UserError:
                continue
            for one in everything(layout, [axis for axis in axes if axis.name != "places"]):
                plan = start.having(one.options)
                try:
                    fitted = fitter.fit(plan)
                except UserError:
                    continue
                key = fitted.like, fitted.pages
                if key in seen:
                    continue
                seen.add(key)
                yield plan
                if len(seen) >= most:
                    return


def searched(case: Case, workers: int) -> tuple[Found, int]:
    """What the search finds, and how many simulations it asked for."""
    asked = 0

    def count(more: int) -> None:
        nonlocal asked
        asked += more

    crew = Crew(Estimator(case.job, simulate, case.trace), workers, tell=count)
    found = Finder(Fitter(case.job, case.trace, case.space), crew.answer).run()
    return found, asked


def best_of_all(
    case: Case, every: Sequence[Candidate], first: Estimate, workers: int
) -> tuple[Estimate, list[Estimate]]:
    """The best of every plan in `sim`, and those that ran to their end. first: one that is known,
    whose time is the first to beat."""
    crew = Crew(Estimator(case.job, simulate, case.trace), workers)
    best, ended = first, []
    for some in _parts(every, ROUND):
        limit = None if best.failed else best.seconds
        asks = [Ask(candidate=one, limit_s=limit, is_whole=True) for one in some]
        for found in crew.answer(asks):
            if found.how == "simulated":
                ended.append(found)
                best = min(best, found, key=lambda one: one.key)
    return best, ended


def _parts(every: Sequence[Candidate], size: int) -> Iterator[Sequence[Candidate]]:
    for begin in range(0, len(every), size):
        yield every[begin : begin + size]
