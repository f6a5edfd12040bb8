"""Mean inter-token time of a closed loop, by the kernels of its passes. It knows no measurement.

A closed loop keeps `running` rows per rank: whoever ends is replaced by a new prompt. In the life
of a row of L output tokens its rank ends as many rows as it holds, so a pass brings running / L
prompts per rank in the mean. Where lengths differ they come independently (a Poisson number per
pass and rank); where all are alike the rows that began together end together, and prompts come in
full budgets. What a prompt costs the others is the engine's:

    mixed          it rides in a pass of the decodes: the pass takes longer
    prefill first  it has a pass of its own, in which nobody decodes. Rows that are all alike begin
                   to decode together: each waits for the passes of its wave after its own

The time between tokens is that of a decode pass, plus what prompts add per pass. Rows that the KV
cache has no room for wait outside; those that began and gave way wait between their tokens, so that
each row has its turn in running / admitted of the passes. Element-wise kernels count by their
bytes: what a launch of one takes is the engine's constant (`Prediction.with_launches_s`), which
`assess` fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchgen.cost.measured import MeasuredCost
from batchgen.cost.silicon.setup import MOST_GPUS, TOKEN_BUDGET, Setup

PREFILL_FIRST = ("sglang",)
LEAST_CHANCE = 1e-9
MOST_RATE = 100.0  # above, Poisson numbers of several ranks hardly differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds. `tpot_s` is without launches of element-wise kernels, `launches` their number per
    token. `prefill_s` is one prompt alone."""

    decode_s: float
    prefill_s: float
    tpot_s: float
    launches: float

    def with_launches_s(self, launch_s: float) -> float:
        """Mean inter-token time with so much for the launch of an element-wise kernel."""
        return self.tpot_s + launch_s * self.launches


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Prompts in the passes of a life. `share` of the passes bring any: `fullest` on the rank with
    most and `together` on all ranks, in the mean over those passes."""

    share: float
    fullest: float
    together: float


def arrivals(running: int, ranks: int, output_tokens: float, spread: bool, most: float) -> Arrivals:
    """`most`: prompts that the budget of a rank's pass holds."""
    rate = running / output_tokens
    if not spread:
        at_once = min(float(running), max(most, 1.0))
        return Arrivals(share=rate / at_once, fullest=at_once, together=at_once * ranks)
    share = -math.expm1(-rate * ranks)
    return Arrivals(
        share=share,
        fullest=mean_of_most(rate, ranks) / share,
        together=rate * ranks / share,
    )


def mean_of_most(rate: float, ranks: int) -> float:
    """The largest of `ranks` independent Poisson numbers of mean `rate`, in the mean."""
    if rate > MOST_RATE:
        return rate
    total, chance, below, count = 0.0, math.exp(-rate), 0.0, 0
    while True:
        below += chance
        above = 1.0 - min(below, 1.0) ** ranks  # that the largest exceeds `count`
        if above < LEAST_CHANCE:
            return total
        total += above
        count += 1
        chance *= rate / count


def closed_loop(one: Setup, cost: MeasuredCost) -> Prediction:
    """Of a setup, by the costs of its engine (made with `engine_cost`)."""
    context = one.prompt_tokens + one.output_tokens / 2
    ranks = one.layout.attention_dp
    decode_s = cost.kernels_s(one.running, context)
    prefill_s = cost.kernels_s(0.0, 0.0, 1.0, one.prompt_tokens, 1.0)
    come = arrivals(
        one.running, ranks, one.output_tokens, one.spread, TOKEN_BUDGET / one.prompt_tokens
    )
    prompts = come.fullest, one.prompt_tokens, come.together
    kernels = cost.num_small_kernels
    if one.engine in PREFILL_FIRST:
        passes = come.share
        if not one.spread:  # half of a wave's passes in the mean, its own not among them
            passes = max(0.0, one.running / come.fullest - 1.0) / 2 / one.output_tokens
        tpot_s = decode_s + passes * cost.kernels_s(0.0, 0.0, *prompts)
        launches = kernels * (1.0 + passes)
    else:
        mixed_s = cost.kernels_s(one.running, context, *prompts)
        share = min(come.share, 1.0)
        more = come.share / share  # what is more than one per pass waits for further passes
        tpot_s = (1.0 - share) * decode_s + share * more * mixed_s
        launches = kernels * (1.0 - share + share * more)
    turns = one.admitted / one.running
    return Prediction(
        decode_s=decode_s,
        prefill_s=prefill_s,
        tpot_s=turns * tpot_s,
        launches=turns * launches,
    )


def engine_cost(one: Setup) -> MeasuredCost:
    """Kernels without launches of small ones; UserError for what no table covers."""
    return MeasuredCost(
        one.model,
        one.gpu,
        one.layout,
        gpus_per_node=MOST_GPUS,
        small_kernel_s=0.0,
    )
