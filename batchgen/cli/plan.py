"""`batchgen plan`: the fastest plan for a job on a cluster, or the cheapest cluster that meets a
deadline. The searches are in `batchgen.search`; nothing is simulated here.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from batchgen.cli.asked import check_machines, of_load
from batchgen.cli.common import (
    JSON_SCHEMA,
    PLAIN_EVERY_S,
    parse_names,
    say,
    users_code,
)
from batchgen.cli.options import command
from batchgen.cli.plan_flags import PlanFlags
from batchgen.cli.sim import simulator
from batchgen.cores import num_cores
from batchgen.errors import UserError
from batchgen.oneline import escaped
from batchgen.paths import check_input, kind_of
from batchgen.simjob import SimJob

if TYPE_CHECKING:
    from batchgen.report.record import RunRecord
    from batchgen.search.find import Found
    from batchgen.trace.table import Trace

app = typer.Typer(add_completion=False, rich_markup_mode=None)

UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@command(app, PlanFlags)
def plan(asked: PlanFlags) -> int:
    """Find the fastest plan for a trace on a cluster, or the cheapest cluster for a deadline."""
    check_input("trace", asked.trace, remedy="give a JSONL file, plain or gzip")
    if asked.profile is not None and kind_of(asked.profile) != "folder":
        check_input("--profile", asked.profile, remedy="give an existing file")
    if asked.progress not in ("auto", "off"):
        raise UserError(f"--progress is '{asked.progress}'", remedy="choose one of auto, off")
    check_machines(asked)
    if asked.deadline is None and (asked.among is not None or asked.prices):
        raise UserError("--among and --price choose a cluster", remedy="add --deadline TIME")
    job = SimJob(**of_load(asked), policy=asked.policy)
    seconds = None if asked.deadline is None else seconds_of(asked.deadline)
    tell = _Tell(asked.progress == "auto")
    with users_code():
        from batchgen.trace.schema import load

        rows = load(job.trace, max_rows=job.limit)
        if not len(rows):
            raise UserError(f"{asked.trace} has no rows", remedy="give a trace with some")
        planner = _Planner(rows, asked.workers or num_cores(), tell)
        if seconds is None:
            answer = planner.answer(job)
        else:
            names = _names(asked.among, asked.gpu, asked.cluster)
            answer = planner.cheapest(job, names, _prices(asked.prices or ()), seconds)
    if asked.as_json:
        print(json.dumps({"schema": JSON_SCHEMA, **answer}, indent=2, allow_nan=False))
    else:
        _show(answer)
    return 1 if answer["winner"]["failed_rows"] else 0


class _Planner:
    """Searches for one load."""

    def __init__(self, trace: Trace, workers: int, tell: _Tell) -> None:
        self.trace, self.workers, self.tell = trace, workers, tell
        self.simulate = simulator()
        self.found: dict[SimJob, Found] = {}

    def search(self, job: SimJob, limit_s: float | None = None) -> Found:
        """The best plan of a job; limit_s: what takes longer is of no use."""
        from batchgen.search.crew import Crew
        from batchgen.search.estimate import Estimator
        from batchgen.search.find import Finder
        from batchgen.search.fit import Fitter
        from batchgen.search.space import PLANS

        crew = Crew(Estimator(job, self.simulate, self.trace), self.workers, tell=self.tell.count)
        return Finder(Fitter(job, self.trace, PLANS), crew.answer, limit_s=limit_s).run()

    def run(self, job: SimJob, found: Found) -> RunRecord:
        """The winner once more, for all that is to be known of it."""
        from batchgen.search.estimate import Estimator

        _, record = Estimator(job, self.simulate, self.trace).whole(found.best.candidate, None)
        assert record is not None
        return record

    def answer(self, job: SimJob) -> dict[str, Any]:
        from batchgen.search.answer import document

        found = self.search(job)
        return document(job, found, self.run(job, found))

    def cheapest(
        self, job: SimJob, names: Sequence[str] | None, prices: dict[str, float], deadline_s: float
    ) -> dict[str, Any]:
        from batchgen.search.answer import document
        from batchgen.search.offers import cheapest, offers
        from batchgen.search.space import PLANS

        if job.profile is not None:
            raise UserError(
                "--profile knows one machine, --deadline compares several",
                remedy="leave one of them out",
            )
        if job.gpus_per_node is not None:
            raise UserError(
                "--gpus-per-node is of one machine, --deadline compares several",
                remedy="leave it out, or name clusters with --among",
            )
        considered = offers(names, job.gpus, prices)

        def seconds(one: SimJob, limit_s: float) -> float:
            found = self.found[one] = self.search(one, limit_s)
            best = found.best
            well = best.how == "simulated" and not best.failed and best.seconds <= limit_s
            return best.seconds if well else math.inf

        choice = cheapest(job, self.trace, PLANS, considered, deadline_s, seconds, self.tell.say)
        chosen = choice.offer.of(job)
        answer = document(chosen, self.found[chosen], self.run(chosen, self.found[chosen]))
        in_usd = all(offer.price_usd > 0 for offer in considered)
        return {
            "deadline_s": deadline_s,
            "cheapest": {
                "cluster": str(choice.offer),
                "cost": choice.cost,
                "unit": "USD" if in_usd else "GPU-hours",
                "price_per_gpu_hour_usd": choice.offer.price_usd or None,
                "price_source": choice.offer.source,
                "considered": len(considered),
                "planned": {
                    name: took if math.isfinite(took) else None
                    for name, took in choice.planned.items()
                },
                "ruled_out_by_bounds": choice.ruled_out,
                "do_not_hold_the_model": choice.unfit,
            },
            **answer,
        }


def _names(among: str | None, gpu: str | None, cluster: str | None) -> tuple[str, ...] | None:
    """What a deadline is met with: of --among, --gpu or --cluster; None: the catalog."""
    one = gpu or cluster
    if among is not None and one is not None:
        raise UserError("--among and --gpu or --cluster are both given", remedy="give one of them")
    if among is not None:
        return parse_names("--among", among)
    return None if one is None else (one,)


def seconds_of(words: str) -> float:
    """Seconds of '90s', '45min', '2h', '1h30min', '1d' or a bare number of seconds."""
    remedy = "write for instance --deadline 90s, 45min, 2h, 1h30min or 1d"
    plain = words.strip().lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|s|m|h|d|)", plain)
    if not parts or "".join(number + unit for number, unit in parts) != plain:
        raise UserError(f"--deadline is '{words[:40]}'", remedy=remedy)
    if len(parts) > 1 and any(not unit for _, unit in parts):
        raise UserError(f"--deadline is '{words[:40]}'", remedy=remedy)
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if not 0 < seconds < 1e9:
        raise UserError(f"--deadline is '{words[:40]}'", remedy="give from 1 s to 30 years")
    return seconds


def _prices(items: Sequence[str]) -> dict[str, float]:
    from batchgen.catalog.systems import cluster_names
    from batchgen.hardware import load_gpu

    found = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            price = float(value)
        except ValueError:
            price = math.nan
        if not name or not 0 < price < 1e6:
            raise UserError(
                f"--price '{item[:60]}' is no price", remedy="write for instance --price h100=2.5"
            )
        is_cluster = name in cluster_names() or name.endswith((".yaml", ".yml"))
        found[name if is_cluster else load_gpu(name).name] = price
    return found


def _show(answer: dict[str, Any]) -> None:
    from batchgen.report import text
    from batchgen.search.answer import lines

    chosen = answer.get("cheapest")
    if chosen is not None:
        price = chosen["price_per_gpu_hour_usd"]
        cost = (
            f"{chosen['cost']:,.3g} $ at {price:g} $ a GPU-hour ({chosen['price_source']})"
            if chosen["unit"] == "USD"
            else f"{chosen['cost']:,.3g} GPU-hours (not all prices are known)"
        )
        until = text.duration(answer["deadline_s"])
        print(escaped(f"cheapest    {chosen['cluster']} for {until}: {cost}"))
        print(
            f"            of {chosen['considered']} clusters {len(chosen['planned'])} were "
            f"planned, bounds rule out {chosen['ruled_out_by_bounds']}, "
            f"{chosen['do_not_hold_the_model']} do not hold the model"
        )
    for line in lines(answer):
        print(escaped(line))


class _Tell:
    """A line on stderr every few seconds."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.last, self.done = shown, time.monotonic(), 0

    def count(self, asked: int) -> None:
        """So many candidates more were simulated."""
        self.done += asked
        clock = time.monotonic()
        if self.shown and clock - self.last >= PLAIN_EVERY_S:
            self.last = clock
            say(f"{self.done:,} plans simulated")

    def say(self, line: str) -> None:
        if self.shown:
            say(line)
