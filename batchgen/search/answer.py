"""A found plan as data and as text. It searches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from batchgen.report import limits, text
from batchgen.report.metrics import summary
from batchgen.report.record import RunRecord
from batchgen.search.find import Found
from batchgen.search.space import Candidate
from batchgen.simcommand import command
from batchgen.simjob import SimJob

ROLES = "{prefill} engines prefill, {decode} decode"


def document(job: SimJob, found: Found, record: RunRecord) -> dict[str, Any]:
    """Everything of an answer, JSON-able."""
    best = found.best
    chosen = best.candidate
    metrics = summary(record)
    second = found.runner_up
    return {
        "model": record.model,
        "gpu": record.gpu,
        "cluster": job.cluster,
        "num_gpus": record.num_gpus,
        "policy": record.policy,
        "rows": metrics["rows"],
        "winner": {
            "layout": str(chosen.layout),
            "options": dict(chosen.options),
            "plan": _plan(record, chosen),
            "bct_s": metrics["bct_s"],
            "failed_rows": metrics["failed_rows"],
            "gpu_hours": metrics["gpu_hours"],
            "cost_usd": metrics["cost_usd"],
            "command": command(chosen.of(job)),
        },
        "runner_up": None
        if second is None
        else {**second.as_dict(), "command": command(second.candidate.of(job))},
        "limiting": limits.limiting(record),
        "time_by_resource": limits.shares(record),
        "remarks": limits.remarks(record, metrics["kv_peak_fraction"]),
        "bounds_s": record.config.get("bounds", {}),
        "residual": metrics["residual"],
        "tried": _tried(found),
        "candidates": [one.as_dict() for one in (best, *found.rest)],
        "refused": found.refused,
    }


def _plan(record: RunRecord, chosen: Candidate) -> dict[str, Any]:
    """The static plan in full, sizes that were not searched too."""
    plan, job = record.config["plan"], dict(record.config["job"]["overrides"])
    return {
        "token_budget": plan["token_budget"],
        "max_num_seqs": plan["max_num_seqs"],
        "b_attn": plan["b_attn"],
        "b_moe": plan["b_moe"],
        "prefill_engines": plan["prefill_engines"] // chosen.layout.pp,
        "num_engines": chosen.layout.num_engines,
        "weights": job.get("plan.weights", "hbm"),
        "kv": job.get("plan.kv", "hbm"),
        "attention": job.get("plan.attention", "gpu"),
        "hbm_pages_per_rank": plan["hbm_pages_per_rank"],
        "page_tokens": plan["page_tokens"],
        "depth": plan["depth"],
    }


def _tried(found: Found) -> dict[str, int]:
    """How many candidates were looked at, by what became of them."""
    counts = {"layouts": len({one.candidate.layout for one in (found.best, *found.rest)})}
    for one in (found.best, *found.rest):
        counts[one.how] = counts.get(one.how, 0) + 1
    counts["refused"] = len(found.refused)
    return counts


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """The answer for a person."""
    best, plan = answer["winner"], answer["winner"]["plan"]
    where = answer["cluster"] or answer["gpu"]
    yield (
        f"{answer['model']} on {answer['num_gpus']} x {where}, {answer['rows']:,} rows, policy "
        f"{answer['policy']}"
    )
    failed = f", {best['failed_rows']:,} rows fail" if best["failed_rows"] else ""
    yield f"winner      {named(best)}: {text.duration(best['bct_s'])}{failed}"
    yield f"            {_in_words(plan)}"
    cost = "" if best["cost_usd"] is None else f", {text.dollars(best['cost_usd'])}"
    yield f"            {text.count(best['gpu_hours'])} GPU-hours{cost}"
    second = answer["runner_up"]
    if second is None:
        yield "runner-up   none: nothing else fits"
    else:
        takes = text.duration(second["seconds"])
        yield f"runner-up   {named(second)}: {takes} ({second['how']})"
    if answer["limiting"]:
        parts = [f"{name} {100 * part:.0f} %" for name, part in answer["time_by_resource"].items()]
        yield f"limited by  {answer['limiting']} ({', '.join(parts)})"
    for remark in answer["remarks"]:
        yield f"            {remark}"
    known = text.residual_line(answer["residual"])
    if known:
        yield f"            {known}"
    tried = answer["tried"]
    whole, some = tried.get("simulated", 0), tried.get("estimate", 0) + tried.get("at least", 0)
    yield (
        f"tried       {tried['layouts']} layouts; {whole} plans on the whole load, {some} on a "
        f"share or until they were given up, {tried.get('ideal passes', 0)} by rule of thumb alone"
    )
    yield f"run it      {best['command']}"


def named(one: Mapping[str, Any]) -> str:
    """A layout with its options."""
    return " ".join([one["layout"], *(f"{key}={value}" for key, value in one["options"].items())])


def _in_words(plan: Mapping[str, Any]) -> str:
    words = []
    if plan["prefill_engines"]:
        prefill = plan["prefill_engines"]
        words.append(ROLES.format(prefill=prefill, decode=plan["num_engines"] - prefill))
    words.append(f"{plan['token_budget']:,} tokens a pass and rank")
    words.append(f"{plan['max_num_seqs']:,} sequences")
    words.append(f"B_attn {plan['b_attn'] or 'all'}, B_moe {plan['b_moe'] or 'all'}")
    attention = ", attention on the CPU" if plan["attention"] == "cpu" else ""
    words.append(f"weights {plan['weights']}, KV {plan['kv']}{attention}")
    return "; ".join(words)
