"""`batchgen exec --dry-run`: what a job would be, as text or JSON. It runs no row, and leaves
nothing behind but what it measured of the machine, in the user's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.cli.common import say
from batchgen.cli.input_file import print_bad
from batchgen.errors import UserError
from batchgen.oneline import escaped, one_line
from batchgen.report.text import count, dollars, duration

if TYPE_CHECKING:
    from batchgen.cli.time_source import TimeSource
    from batchgen.exec.job import ExecJob
    from batchgen.exec.survey import Survey
    from batchgen.job.forecast import Forecast

MANY = 100_000
MOST_PROMPT = 2000
"""Characters of the first prompt that are shown; JSON has all of it."""


def dry_run(
    job: ExecJob,
    *,
    profile: Path | None,
    gpu: str | None,
    expected_tokens: int | None,
    price_per_hour: float | None,
    as_json: bool,
) -> int:
    """Prints it; exit code 0 if all rows can run, 1 if some cannot, 2 if none can."""
    from batchgen.exec.survey import survey

    found = survey(job)
    told = None
    notes: list[str] = []
    times = None if found.plan is None else _times(found, profile, gpu, notes)
    if times is not None:
        from batchgen.cli.forecasting import forecast

        if len(found.prompt_tokens) > MANY:
            say(f"simulating {count(len(found.prompt_tokens))} sequences, which takes a while")
        told = forecast(found, times, expected_tokens)
        notes += times.notes
    document = as_object(found, told, times, price_per_hour)
    if as_json:
        print(json.dumps(document | {"notes": notes}, indent=2, allow_nan=False))
    else:
        _print(found, document)
        for note in notes:
            say(f"note: {note}")
    if not found.read.jobs:
        say(f"error: no row of {job.input} can run; mend the rows, whose errors are counted above")
        return 2
    return 1 if found.bad.counts else 0


def _times(
    found: Survey, profile: Path | None, gpu: str | None, notes: list[str]
) -> TimeSource | None:
    """None, with a note, where nothing is known. What was asked for is a UserError if it does not
    fit; what nobody asked for is no reason to fail."""
    from batchgen.cli.time_source import of_catalog, of_profile, of_this_machine

    if profile is not None:
        return of_profile(found, profile)
    if gpu is not None:
        return of_catalog(found, gpu)
    if found.job.body is not None:
        notes.append("no prediction: nobody knows what a body will ask for")
        return None
    try:
        times = of_this_machine(found, say)
    except (UserError, MemoryError) as error:
        notes.append(f"no prediction: {one_line(str(error), 200)}")
        return None
    if times is None:
        notes.append("no prediction: the catalog does not know this GPU; give --gpu or --profile")
    return times


def as_object(
    found: Survey, told: Forecast | None, times: TimeSource | None, price_per_hour: float | None
) -> dict[str, Any]:
    """All that is known before a run, as JSON has it."""
    plan = found.plan
    prompts, budgets = found.prompt_tokens, found.max_output
    document: dict[str, Any] = {
        "schema": 1,
        "input": str(found.job.input),
        "rows": found.read.num_rows,
        "bad_rows": found.bad.counts.total(),
        "bad_by_code": found.bad.as_json(),
        "unknown_fields": dict(found.read.unknown),
        "sequences": len(prompts),
        "prompt_tokens": int(prompts.sum()),
        "max_output_tokens": int(budgets.sum()),
        "prompt_histogram": histogram(prompts.tolist()),
        "max_output_histogram": histogram(budgets.tolist()),
        "plan": None,
        "memory": found.memory,
        "first_prompt": found.first_prompt,
        "predicted": None,
    }
    if plan is not None:
        document["plan"] = {
            "policy": found.job.policy,
            "page_tokens": plan.page_tokens,
            "boundary": plan.boundary,
            "token_budget": plan.token_budget,
            "max_num_seqs": plan.max_num_seqs,
            "hbm_pages": plan.engines[0].hbm_pages,
            "host_pages": plan.engines[0].host_pages,
            "depth": plan.depth,
        }
    if told is not None and times is not None:
        hours = told.total_s / 3600
        document["predicted"] = {
            "total_s": round(told.total_s, 3),
            "range_s": None if told.range_s is None else [round(one, 3) for one in told.range_s],
            "kv_peak_pages": told.kv_peak_pages,
            "guess": told.guess,
            "cost": None if price_per_hour is None else round(hours * price_per_hour, 4),
            "times_of": times.origin,
            "error": times.error,
        }
    return document


def histogram(values: list[int]) -> list[dict[str, int]]:
    """How many values are from `least` to `most`, by powers of two; empty ones at the ends left
    out."""
    if not values:
        return []
    counts: dict[int, int] = {}
    for value in values:
        counts[value.bit_length()] = counts.get(value.bit_length(), 0) + 1
    return [
        {"least": (1 << bits) >> 1, "most": (1 << bits) - 1, "rows": counts.get(bits, 0)}
        for bits in range(min(counts), max(counts) + 1)
    ]


def _print(found: Survey, document: dict[str, Any]) -> None:
    runs = document["rows"] - document["bad_rows"]
    print(f"{escaped(document['input'])}: {count(document['rows'])} rows, {count(runs)} can run")
    print_bad(document["bad_by_code"], document["unknown_fields"])
    if not document["sequences"]:
        print("no row can run")
        return
    print(
        f"tokens: {count(document['prompt_tokens'])} of prompts, at most "
        f"{count(document['max_output_tokens'])} of answers, {count(document['sequences'])} "
        "sequences"
    )
    _histogram("prompt tokens", document["prompt_histogram"])
    _histogram("most output tokens", document["max_output_histogram"])
    plan = document["plan"]
    print("plan: " + ", ".join(f"{name} {value}" for name, value in plan.items()))
    sizes = {name.removesuffix("_bytes"): value for name, value in found.memory.items()}
    print("memory: " + ", ".join(f"{name} {value / 1e9:.3f} GB" for name, value in sizes.items()))
    if (told := document["predicted"]) is not None:
        low_high = told["range_s"]
        bar = "" if low_high is None else f" ({duration(low_high[0])} to {duration(low_high[1])})"
        price = "" if told["cost"] is None else f", {_price(told['cost'])}"
        print(
            f"the simulator says {duration(told['total_s'])}{bar}{price}, KV peak "
            f"{count(told['kv_peak_pages'])} pages, if {told['guess']}"
        )
        print(escaped(f"its times are of {told['times_of']}; {told['error']}"))
    text = found.first_prompt
    cut = "" if len(text) <= MOST_PROMPT else f" (its first {MOST_PROMPT} characters)"
    print(f"first prompt{cut}:")
    for line in text[:MOST_PROMPT].split("\n"):
        print(escaped(line))


def _price(cost: float) -> str:
    return f"{cost:.4f} $" if 0 < cost < 1 else dollars(cost)


def _histogram(name: str, bins: list[dict[str, int]]) -> None:
    most = max(one["rows"] for one in bins)
    print(f"{name}:")
    for one in bins:
        bar = "#" * round(40 * one["rows"] / most)
        print(f"  {one['least']:>9,} to {one['most']:<9,} {one['rows']:>9,} {bar}".rstrip())
