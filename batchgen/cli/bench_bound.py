"""`batchgen bench bound`: the phase-sum bound of a load on one device, by phase."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import tell_result
from batchgen.errors import UserError
from batchgen.paths import check_input, check_result

if TYPE_CHECKING:
    from batchgen.cost.phase_sum import Phases, PhaseSum

MATMUL, COPY = "matmul_bf16", "device_copy"  # of benchmarks/gpu/ceilings.py
FULL = 0.8  # share of the seats from which on a pass counts for the window


def bound(
    model: Annotated[str, typer.Option(help="Catalog name, or a folder with a config.json.")],
    seats: Annotated[int, typer.Option(help="Rows that run at once.")],
    ceilings: Annotated[
        Path | None,
        typer.Option(help="JSON of 'make gpu-check', whose matrix product and copy count."),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="Instead: rate of matrix products, 10^12 FLOPs/s.")
    ] = None,
    gb_per_s: Annotated[
        float | None, typer.Option("--gb-per-s", help="And bandwidth of memory, 10^9 bytes/s.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(help="Trace whose rows are list-scheduled on the seats.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the trace.")] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Instead of a trace: prompt of every row.")
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(help="And its output.")] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="So many such rows, list-scheduled; default: the steady state, rows without end."
        ),
    ] = None,
    token_budget: Annotated[
        int, typer.Option(help="Tokens of a list-scheduled pass; 0: no limit.")
    ] = 8192,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Tokens per second that the phase-sum bound allows, and the time by phase."""
    from batchgen.cost.phase_sum import PhaseSum
    from batchgen.model import load_model

    if out is not None:
        check_result(out, force=force)
    for flag, value in {
        "--seats": seats,
        "--prompt-tokens": prompt_tokens,
        "--output-tokens": output_tokens,
        "--rows": rows,
        "--limit": limit,
    }.items():
        if value is not None and value < 1:
            raise UserError(f"{flag} is {value}", remedy="give a number of at least 1")
    if token_budget < 0:
        raise UserError(f"--token-budget is {token_budget}", remedy="give 0 for no limit")
    flops_per_s, bytes_per_s, source = _rates(ceilings, tflops, gb_per_s)
    spec = load_model(model)
    if spec.window:
        raise UserError(
            f"{spec.name} has layers with a sliding window",
            remedy="the bound counts every layer as one that reads the whole context",
        )
    phase_sum = PhaseSum(model=spec, matmul_flops_per_s=flops_per_s, memory_bytes_per_s=bytes_per_s)
    if (trace is None) == (prompt_tokens is None or output_tokens is None):
        raise UserError(
            "a load is a trace or fixed lengths",
            remedy="give --trace, or --prompt-tokens and --output-tokens",
        )
    if trace is not None and rows is not None:
        raise UserError("--rows is for fixed lengths", remedy="use --limit with --trace")
    document: dict[str, Any] = {
        "schema": 1,
        "benchmark": "bench bound",
        "model": spec.name,
        "matmul_flops_per_s": flops_per_s,
        "memory_bytes_per_s": bytes_per_s,
        "rates_of": source,
        "seats": seats,
    }
    if trace is None and rows is None:
        assert prompt_tokens is not None
        assert output_tokens is not None
        document |= {
            "load": f"{prompt_tokens} + {output_tokens} tokens, steady",
            "steady": _steady(phase_sum, prompt_tokens, output_tokens, seats),
        }
    else:
        if trace is not None:
            load, prompts, outputs = _of_trace(trace, limit)
        else:
            load = f"{rows:,} rows of {prompt_tokens} + {output_tokens} tokens"
            prompts, outputs = (
                [prompt_tokens or 0] * (rows or 0),
                [output_tokens or 0] * (rows or 0),
            )
        document |= {"load": load, "token_budget": token_budget}
        document |= _batch(phase_sum, prompts, outputs, seats, token_budget)
    return tell_result(document, lambda: _print(document), (), out=out, as_json=as_json)


def _rates(
    ceilings: Path | None, tflops: float | None, gb_per_s: float | None
) -> tuple[float, float, str]:
    """FLOPs/s, bytes/s, and where they are from."""
    if ceilings is None:
        if not (tflops and gb_per_s and tflops > 0 and gb_per_s > 0):
            raise UserError(
                "the bound needs rates", remedy="give --ceilings FILE, or --tflops and --gb-per-s"
            )
        return tflops * 1e12, gb_per_s * 1e9, "given"
    if tflops is not None or gb_per_s is not None:
        raise UserError("--ceilings and rates are both given", remedy="give one of them")
    check_input("--ceilings", ceilings, remedy="give a JSON of 'make gpu-check'")
    try:
        found = json.loads(ceilings.read_text(encoding="utf-8"))
        if "pieces" in found:
            found = found["pieces"]["ceilings/all"]["result"]
        rates = [float(found["ceilings"][name]["median"]) for name in (MATMUL, COPY)]
    except (ValueError, KeyError, TypeError):
        rates = []
    if not rates or min(rates) <= 0:
        raise UserError(
            f"{ceilings} has no {MATMUL} and {COPY}", remedy="give a JSON of 'make gpu-check'"
        )
    return rates[0], rates[1], ceilings.name


def _of_trace(path: str, limit: int | None) -> tuple[str, list[int], list[int]]:
    from batchgen.trace.schema import load

    check_input("trace", path, remedy="give a JSONL file, plain or gzip")
    trace = load(path, max_rows=limit)
    if not len(trace):
        raise UserError(f"{path} has no rows", remedy="give a trace with some")
    if trace.stages is not None:
        raise UserError(
            f"{path}: rows of several stages are not list-scheduled", remedy="give another trace"
        )
    name = f"{trace.name}, {len(trace):,} rows"
    return name, trace.prompt_tokens.tolist(), trace.output_tokens.tolist()


def _steady(phase_sum: PhaseSum, prompt: int, output: int, seats: int) -> dict[str, Any]:
    one = phase_sum.steady_s(prompt_tokens=prompt, output_tokens=output, rows=seats)
    return _told(one, prompt, output)


def _batch(
    phase_sum: PhaseSum, prompts: list[int], outputs: list[int], seats: int, budget: int
) -> dict[str, Any]:
    """The whole batch, and its passes with most seats decoding."""
    from batchgen.cost.list_schedule import list_schedule
    from batchgen.cost.phase_sum import Phases

    passes = list_schedule(prompts, outputs, seats=seats, token_budget=budget)
    times = phase_sum.phases_s(passes)
    parts = {"whole": passes.decodes >= 0, "window": passes.decodes >= FULL * seats}
    told = {}
    for name, chosen in parts.items():
        if chosen.any():
            some = Phases(**{one.name: getattr(times, one.name)[chosen] for one in fields(Phases)})
            prompt, output = passes.chunk_tokens[chosen].sum(), passes.samples[chosen].sum()
            told[name] = {"passes": int(chosen.sum())} | _told(some, int(prompt), int(output))
    return told


def _told(times: Phases, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    seconds = float(times.total.sum())
    return {
        "seconds": seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "output_tokens_per_s": output_tokens / seconds,
        "prompt_tokens_per_s": prompt_tokens / seconds,
        "phases_s": {one.name: float(getattr(times, one.name).sum()) for one in fields(times)},
    }


SHOWN = {
    "steady": "steady, a row",
    "whole": "whole batch",
    "window": f"passes with {100 * FULL:.0f} % of the seats decoding",
}


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    rates = document["matmul_flops_per_s"] / 1e12, document["memory_bytes_per_s"] / 1e9
    title = (
        f"Phase-sum bound: {document['model']}, {document['load']}, {document['seats']:,} seats, "
        f"{rates[0]:,.1f} TFLOP/s, {rates[1]:,.1f} GB/s ({document['rates_of']})"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    names = ("output tokens/s", "prompt tokens/s", "seconds", "products", "KV reads", "scores")
    for name in names:
        table.add_column(name, justify="right")
    for name, label in SHOWN.items():
        if name not in document:
            continue
        one = document[name]
        shares = [f"{100 * part / one['seconds']:.1f} %" for part in one["phases_s"].values()]
        rates_shown = [f"{one[f'{what}_tokens_per_s']:,.0f}" for what in ("output", "prompt")]
        table.add_row(label, *rates_shown, f"{one['seconds']:.4g}", *shares)
    Console(width=130, highlight=False).print(table)
