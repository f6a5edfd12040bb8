"""What clusters of the catalog cost, and the cheapest that meets a deadline. Planning one is passed
in.

Clusters come by the least that they could cost. That is a true lower bound: no plan takes less than
the FLOPs of the load at the peak of all GPUs, or than the longest row alone in the fastest layout.
So the search ends at the first cluster that could not be cheaper than the best.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from batchgen.catalog.systems import cluster_names, find_cluster
from batchgen.errors import UserError
from batchgen.hardware import gpu_names, gpu_price, load_gpu
from batchgen.model import load_model
from batchgen.outputs import outputs_of
from batchgen.planning import plan_options
from batchgen.policy.presets import find_preset
from batchgen.search.fit import Fitter
from batchgen.search.space import Space
from batchgen.simjob import SimJob
from batchgen.trace.table import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """So many GPUs of a kind. name: a GPU of the catalog, or a cluster. price_usd: of a GPU-hour;
    0: unknown. source: where the price is from."""

    name: str
    is_cluster: bool
    gpus: int
    price_usd: float
    source: str

    def of(self, job: SimJob) -> SimJob:
        """The job on these machines."""
        if self.is_cluster:
            return replace(job, cluster=self.name, gpus=self.gpus)
        return replace(job, gpu=self.name, cluster=None, gpus=self.gpus)

    def cost(self, seconds: float, *, in_usd: bool) -> float:
        """Dollars, or else GPU-hours."""
        return self.gpus * seconds / 3600 * (self.price_usd if in_usd else 1.0)

    def __str__(self) -> str:
        return f"{self.gpus} x {self.name}"


def offers(among: Sequence[str] | None, most_gpus: int, prices: Mapping[str, float]) -> list[Offer]:
    """Powers of two of GPUs of each kind, up to so many. among: names of GPUs and clusters; None:
    all of the catalog. prices: of GPU-hours, instead of the catalog's. Raises UserError."""
    clusters = cluster_names()
    names = list(among) if among is not None else [*gpu_names(), *clusters]
    found, used = [], set()
    for name in names:
        is_cluster = name in clusters or name.endswith((".yaml", ".yml"))
        gpu = find_cluster(name).gpu if is_cluster else load_gpu(name).name
        price, source = gpu_price(gpu)
        for key in (gpu, name):
            if key in prices:
                price, source = prices[key], "given"
                used.add(key)
        each = name if is_cluster else gpu
        count = 1
        while count <= most_gpus:
            found.append(
                Offer(name=each, is_cluster=is_cluster, gpus=count, price_usd=price, source=source)
            )
            count *= 2
    for name in prices:
        if name not in used:
            raise UserError(
                f"--price {name}: no such GPU or cluster is considered",
                remedy=f"give one of {', '.join(names)}",
            )
    return found


def flops_bound_s(job: SimJob, trace: Trace) -> float:
    """The FLOPs of all tokens that have to be computed, at the peak of all GPUs. Prompts that rows
    may share count as far as no row shares them; 0 where a body decides what is computed."""
    if job.body is not None or not len(trace):
        return 0.0
    model, preset = load_model(job.model), find_preset(job.policy)
    gpu = load_gpu(find_cluster(job.cluster).gpu if job.cluster is not None else job.gpu)
    per_token = model.flops_per_token()
    head = per_token.pop("lm_head")
    prompts = trace.prompt_tokens.astype(np.int64)
    if trace.prefix_blocks.size:
        prompts = prompts - np.diff(trace.prefix_offsets) * trace.prefix_block_tokens
    outputs = outputs_of(job, trace, model, plan_options(dict(job.overrides), preset.plan)).tokens
    tokens = float(np.maximum(prompts, 1).sum() + (outputs - 1).sum())
    flops = tokens * sum(per_token.values()) + float(outputs.sum()) * head
    own = {"cost.grouped"} & {*dict(job.overrides), *(f"cost.{k}" for k in preset.costs)}
    most = MOST_OF_PEAK if own else 1.0
    return flops / (job.gpus * max(gpu.peak_flops.values()) * most)


MOST_OF_PEAK = 2.0
"""What experts may reach of the peak with a `cost.grouped` of one's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The cheapest offer that meets a deadline. planned: offers whose plans were searched, with
    what they take in seconds (inf: longer than the deadline, or than what is cheaper); ruled_out:
    by bounds alone; unfit: they do not hold the model."""

    offer: Offer
    seconds: float
    cost: float
    planned: dict[str, float]
    ruled_out: int
    unfit: int


Plan = Callable[[SimJob, float], float]
"""The seconds of the best plan of a job, inf where it takes longer than the given ones."""


def cheapest(
    job: SimJob,
    trace: Trace,
    space: Space,
    among: Sequence[Offer],
    deadline_s: float,
    plan: Plan,
    tell: Callable[[str], None],
) -> Choice:
    """Of those that end by the deadline the one that costs least, then the fastest. Where a price
    is unknown, cost is GPU-hours. Raises UserError when none does."""
    in_usd = all(offer.price_usd > 0 for offer in among)
    bounds = [flops_bound_s(offer.of(job), trace) for offer in among]
    heap = [
        (offer.cost(bounds[i], in_usd=in_usd), bounds[i], i, False) for i, offer in enumerate(among)
    ]
    heapq.heapify(heap)
    best: tuple[float, float, int] | None = None
    planned: dict[str, float] = {}
    ruled_out = unfit = 0
    first: UserError | None = None
    nearest = np.inf
    while heap:
        least, bound, number, is_refined = heapq.heappop(heap)
        if best is not None and least >= best[0]:
            ruled_out += 1 + len(heap)
            break
        offer = among[number]
        if bound > deadline_s:
            ruled_out += 1
            nearest = min(nearest, bound)
            continue
        if not is_refined:
            try:
                row = Fitter(offer.of(job), trace, space).alone_s()
            except UserError as error:
                if error.code != "does_not_fit":
                    raise
                first = first or error
                unfit += 1
                continue
            bound = max(bound, row)
            heapq.heappush(heap, (offer.cost(bound, in_usd=in_usd), bound, number, True))
            continue
        limit = deadline_s
        if best is not None:
            limit = min(limit, best[0] / offer.cost(1.0, in_usd=in_usd))
        tell(f"{offer}: at least {bound:.4g} s, planning")
        seconds = planned[str(offer)] = plan(offer.of(job), limit)
        if seconds <= limit:
            found = offer.cost(seconds, in_usd=in_usd), seconds, number
            best = found if best is None else min(best, found)
    if best is None:
        raise _none(first, among, deadline_s, planned, nearest)
    cost, seconds, number = best
    return Choice(
        offer=among[number],
        seconds=seconds,
        cost=cost,
        planned=planned,
        ruled_out=ruled_out,
        unfit=unfit,
    )


def _none(
    first: UserError | None,
    among: Sequence[Offer],
    deadline_s: float,
    planned: Mapping[str, float],
    nearest: float,
) -> UserError:
    """Why no offer will do."""
    if first is not None and not planned and np.isinf(nearest):
        return first  # the model fits none of them
    most = max(offer.gpus for offer in among)
    more = f"the lowest bound of one alone is {nearest:.4g} s" if np.isfinite(nearest) else ""
    tried = f"{len(planned)} were planned" if planned else "bounds rule all of them out"
    return UserError(
        f"no cluster of up to {most} GPUs ends within {deadline_s:g} s ({tried}"
        + (f"; {more}" if more and not planned else "")
        + ")",
        remedy="give a longer --deadline, or more GPUs with --gpus",
        code="deadline",
    )
