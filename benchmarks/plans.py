"""Found plans beside full enumerations, and cheapest clusters beside a grid: how much the search of
`batchgen plan` misses.

    python benchmarks/plans.py --output benchmarks/results/plans-DATE.json

Each case draws a model, machines, a policy, a load and which axes are searched (`plan_grid.py`).
Every plan of that space is simulated, and the search's winner held against the best. For deadlines
every cluster of a small catalog is planned in full, again by enumeration. Exit code 1 when a winner
is more than 3 % behind, or a deadline's cluster is another than the grid's and costs more.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import commit, describe, publish
from plan_grid import POLICIES, Case, best_of_all, draw, plans, searched

from batchgen.errors import UserError
from batchgen.search.crew import Crew
from batchgen.search.estimate import Estimate, Estimator
from batchgen.search.find import Finder
from batchgen.search.fit import Fitter
from batchgen.search.offers import Offer, cheapest, offers
from batchgen.search.space import Space
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

BAR = 1.03
SMALL = Space(roles=False)  # of deadlines: layouts with pipelines, in HBM or on hosts


def cpu_s() -> float:
    """Processor time of this process and those that it waited for."""
    own, theirs = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + theirs.ru_utime + theirs.ru_stime


def one_case(case: Case, workers: int) -> dict[str, Any]:
    """A row of the table."""
    began = cpu_s()
    found, asked = searched(case, workers)
    middle = cpu_s()
    every = list(plans(case, 10**6))
    best, ended = best_of_all(case, every, found.best, workers)
    outputs, prompts = case.trace.output_tokens, case.trace.prompt_tokens
    early = [one for one in ended if one.seconds < found.guesses.get(one.candidate, 0.0)]
    return {
        "model": case.job.model,
        "gpu": case.job.gpu,
        "gpus": case.job.gpus,
        "policy": case.job.policy,
        "rows": len(case.trace),
        "mean_prompt_tokens": float(prompts.mean()),
        "mean_output_tokens": float(outputs.mean()),
        "axes": axes_of(case.space),
        "plans": len(every),
        "simulations_of_the_search": asked,
        "winner": str(found.best.candidate),
        "winner_s": found.best.seconds,
        "best": str(best.candidate),
        "best_s": best.seconds,
        "ratio": found.best.seconds / best.seconds,
        "failed_rows": [found.best.failed, best.failed],
        "guess_of_best_over_its_time": found.guesses.get(best.candidate, math.nan) / best.seconds,
        "ended_before_their_guess": len(early),
        "ended": len(ended),
        "search_cpu_s": middle - began,
        "enumeration_cpu_s": cpu_s() - middle,
    }


def axes_of(space: Space) -> list[str]:
    """What is searched beside layouts."""
    flags = {
        "pipelines": space.pipelines,
        "roles": space.roles,
        "places": space.more_places,
        "budgets": space.budgets,
        "b_moe": space.b_moe,
        "b_attn": space.b_attn,
        "seats": space.more_seats,
    }
    return [name for name, value in flags.items() if value]


def one_deadline(rng: random.Random, path: str, workers: int) -> dict[str, Any]:
    """The cheapest cluster by the search, and of a grid in which every plan is simulated."""
    case = draw(rng, path, most_rows=200)
    names = rng.sample(("a100", "h100", "h200", "h20", "b200", "a5000", "rtx-pro-6000"), k=3)
    considered = offers(names, 8, {})
    grid: dict[Offer, Estimate] = {}
    for offer in considered:
        cell = Case(job=offer.of(case.job), trace=case.trace, space=SMALL)
        try:
            every = list(plans(cell, 10**6))
        except UserError:
            continue
        never = Estimate(
            candidate=every[0], seconds=math.inf, how="at least", failed=len(case.trace)
        )
        grid[offer] = best_of_all(cell, every, never, workers)[0]
    well = {offer: one.seconds for offer, one in grid.items() if not one.failed}
    if not well:
        return one_deadline(rng, path, workers)
    deadline_s = min(well.values()) * rng.uniform(1.05, 4.0)
    meeting = {
        offer: offer.cost(seconds, in_usd=True)
        for offer, seconds in well.items()
        if seconds <= deadline_s
    }
    expected = min(meeting, key=lambda offer: (meeting[offer], well[offer]))

    def plan(job: SimJob, limit_s: float) -> float:
        crew = Crew(Estimator(job, simulate, case.trace), workers)
        best = Finder(Fitter(job, case.trace, SMALL), crew.answer, limit_s=limit_s).run().best
        return best.seconds if best.how == "simulated" and not best.failed else math.inf

    choice = cheapest(case.job, case.trace, SMALL, considered, deadline_s, plan, lambda _: None)
    return {
        "model": case.job.model,
        "policy": case.job.policy,
        "rows": len(case.trace),
        "among": names,
        "clusters": len(considered),
        "deadline_s": deadline_s,
        "chosen": str(choice.offer),
        "chosen_usd": choice.cost,
        "grid": str(expected),
        "grid_usd": meeting[expected],
        "equal": choice.offer == expected,
        "ratio": choice.cost / meeting[expected],
        "planned": len(choice.planned),
        "ruled_out": choice.ruled_out,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--deadlines", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    began = time.time()
    rng = random.Random(given.seed)
    with tempfile.NamedTemporaryFile() as file:
        rows, times = [], []
        for number in range(given.cases):
            rows.append(one_case(draw(rng, file.name), given.workers))
            print(number, rows[-1], file=sys.stderr, flush=True)
        for number in range(given.deadlines):
            times.append(one_deadline(rng, file.name, given.workers))
            print(number, times[-1], file=sys.stderr, flush=True)
    ratios = sorted(row["ratio"] for row in rows)
    missed = [
        row for row in rows if row["ratio"] > BAR or row["failed_rows"][0] > row["failed_rows"][1]
    ]
    wrong = [one for one in times if not one["equal"] and one["ratio"] > 1.0]
    publish(
        {
            "benchmark": "plans",
            "machine": describe(),
            **commit(),
            "policies": POLICIES,
            "seed": given.seed,
            "bar": BAR,
            "worst_ratio": ratios[-1] if ratios else None,
            "mean_ratio": sum(ratios) / len(ratios) if ratios else None,
            "beyond_the_bar": len(missed),
            "deadlines_that_differ": len(wrong),
            "plans": rows,
            "deadlines": times,
            "wall_s": time.time() - began,
        },
        given.output,
    )
    return 1 if missed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
