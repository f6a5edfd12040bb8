"""Rates of a throughput cell and its shares of the phase-sum bound. Runs nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from loads import FULL, MODELS, TOKEN_BUDGET, Load, lengths

from batchgen.catalog.hf_config import spec_from_config
from batchgen.cost.list_schedule import Passes, list_schedule
from batchgen.cost.phase_sum import PhaseSum

COLUMNS = ("decodes", "context", "chunk_tokens", "chunk_pairs", "samples")
FIRST = 64  # passes whose times are told one by one

Floats = npt.NDArray[np.float64]


def bound_of(load: Load, ceilings: dict[str, float]) -> PhaseSum:
    return PhaseSum(
        model=spec_from_config(MODELS[load.model], name=load.model, place="cells"),
        matmul_flops_per_s=ceilings["matmul_bf16"],
        memory_bytes_per_s=ceilings["device_copy"],
    )


def summary(found: dict[str, Any], load: Load, ceilings: dict[str, float]) -> dict[str, Any]:
    """What `throughput.run` found, with rates and shares in place of its passes.

    `share_of_its_passes_bound` compares with the bound of the very passes that ran. `job` is the
    bound of the load, its rows list-scheduled on the same seats, until as many output tokens are
    there; `share` is its time over the run's, from the first pass on. Tokens are those of passes:
    the last pass of a row, which its end was not known in time for, counts with one token.
    """
    passes, seats = found.pop("passes"), found["seats"]
    bound = bound_of(load, ceilings)
    took, ours = took_s(passes), loads_of(passes)
    at_best = bound.phases_s(ours).total
    steady = ours.decodes >= FULL * seats
    only = steady & (ours.chunk_tokens == 0)
    line: dict[str, Any] = {
        "passes": len(took),
        "run_s": float(took.sum()),
        "output_tokens": int(ours.samples.sum()),
        "first_passes": first_passes(passes, bound),
    }
    before = found.pop("passes_before", None)
    if before is not None:
        line["first_passes_before"] = first_passes(before, bound)
    line["job"] = job(bound, load, found["rows"], seats, line["output_tokens"])
    line["job"]["share"] = line["job"]["seconds"] / line["run_s"] if len(took) else 0.0
    if not load.sigma:
        line["bound_tokens_per_s"] = bound.steady_output_tokens_per_s(
            prompt_tokens=load.prompt_tokens, output_tokens=load.output_tokens, rows=seats
        )
    for name, chosen in (("all", steady | True), ("steady", steady), ("steady_decode", only)):
        if chosen.any():
            line[name] = rates(took[chosen], at_best[chosen], ours, chosen)
    if not len(took):
        return found | line | {"summary": "no pass has ended"}
    told = line.get("steady", line["all"])
    line["summary"] = (
        f"{told['output_tokens_per_s']:,.0f} output tokens/s with most seats taken, "
        f"{told['share_of_its_passes_bound']:.0%} of the phase-sum bound of these passes; "
        f"{line['job']['share']:.0%} of the bound of the list-scheduled job"
    )
    return found | line


def took_s(passes: dict[str, Any]) -> Floats:
    return np.asarray((passes["duration_ps"] + passes["gap_ps"]) / 1e12)


def loads_of(passes: dict[str, Any]) -> Passes:
    return Passes(**{name: passes[name].astype(np.int64) for name in COLUMNS})


def first_passes(passes: dict[str, Any], bound: PhaseSum) -> dict[str, list[float]]:
    """Times of the passes that fill the batch, one by one: of the pass, its bound, and its launch
    by the host."""
    columns = {
        "ms": took_s(passes),
        "bound_ms": bound.phases_s(loads_of(passes)).total,
        "launch_ms": passes["launch_s"],
    }
    return {name: (1e3 * found[:FIRST]).round(2).tolist() for name, found in columns.items()}


def rates(
    took: Floats, at_best: Floats, passes: Passes, chosen: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    spent = float(took.sum())
    return {
        "passes": len(took),
        "seconds": spent,
        "output_tokens_per_s": float(passes.samples[chosen].sum() / spent),
        "prompt_tokens_per_s": float(passes.chunk_tokens[chosen].sum() / spent),
        "share_of_its_passes_bound": float(at_best.sum() / spent),
        "median_pass_ms": float(np.median(took) * 1e3),
        "median_bound_ms": float(np.median(at_best) * 1e3),
    }


def job(bound: PhaseSum, load: Load, rows: int, seats: int, tokens: int) -> dict[str, Any]:
    """The list-scheduled load until so many output tokens are there."""
    prompts, outputs = lengths(load, rows)
    passes = list_schedule(
        prompts.tolist(), outputs.tolist(), seats=seats, token_budget=TOKEN_BUDGET
    )
    seconds = bound.phases_s(passes).total
    so_far = np.cumsum(passes.samples) - passes.samples < max(tokens, 1)
    return {
        "seconds": float(seconds[so_far].sum()),
        "output_tokens_per_s": float(passes.samples[so_far].sum() / seconds[so_far].sum()),
    }
