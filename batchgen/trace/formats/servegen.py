"""Draws requests from a ServeGen client set: per-client rates, burstiness and length tables.

A client set is no request list. Each client has windows (start, rate, inter-arrival distribution)
and length tables per longer window; requests are drawn from them with a seed. Prompt and output
length of a request are drawn independently, because the tables hold marginals only.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchgen.errors import DataError, UserError
from batchgen.trace.formats.servegen_files import Client, read_clients
from batchgen.trace.rejects import Rejects
from batchgen.trace.schema import trace_name
from batchgen.trace.table import Trace, make_trace

DEFAULT_REQUESTS = 10_000
MAX_ROWS = 50_000_000  # a larger draw is a mistyped scale, and would fill the memory first


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeGenOptions:
    """What to draw. `num_requests` None means as many as the rates times `rate_scale` give.

    With a number, the rates are scaled to give a little more and a uniformly drawn subset of
    exactly that many is kept, so the shape over the whole span stays; `rate_scale` then has no
    effect. `start_s` and `duration_s` (None: to the end) choose a part of the span.
    """

    seed: int = 0
    num_requests: int | None = DEFAULT_REQUESTS
    start_s: float = 0.0
    duration_s: float | None = None
    rate_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.num_requests is not None and self.num_requests < 1:
            raise UserError("requests must be at least 1", remedy="give a positive number")
        if not (self.rate_scale > 0 and math.isfinite(self.rate_scale)):
            raise UserError("rate scale must be a positive number", remedy="leave it at 1")
        if self.start_s < 0 or (self.duration_s is not None and self.duration_s <= 0):
            raise UserError(
                "start must be from 0 and duration above 0 seconds", remedy="correct the times"
            )


def generate_servegen(path: str | os.PathLike[str], options: ServeGenOptions) -> Trace:
    """Draw a trace from a client set (.tar.gz, .tar or folder), rows sorted by arrival.

    Clients without any length table and windows without a rate draw nothing; the former are
    named in the meta with their share of the requests. Raises UserError or DataError.
    """
    clients = read_clients(Path(path), start_s=options.start_s, duration_s=options.duration_s)
    usable = [client for client in clients if client.lengths]
    weights = {client.number: _expected(client) for client in clients}
    expected = sum(weights[client.number] for client in usable)
    if expected <= 0:
        raise DataError(
            "no client has both a rate and lengths in this part of the span",
            path=str(path),
            remedy="choose another start or duration",
        )
    wanted = options.num_requests
    scale = options.rate_scale
    if wanted is not None:
        # Ten percent and five standard deviations more than wanted: rarely a second round.
        scale = (1.1 * wanted + 5.0 * math.sqrt(wanted) + 5.0) / expected
    if expected * scale > MAX_ROWS:
        raise UserError(
            f"about {expected * scale:.2g} requests to draw, the limit is {MAX_ROWS:.0e}",
            remedy="give --requests, a lower --rate-scale or a shorter --duration-s",
        )
    rejects = Rejects(skip_bad=False)
    round_number = 0
    while True:
        rng = np.random.default_rng([options.seed, round_number])
        rejects.dropped.clear()
        arrival_s, prompts, outputs = _draw(usable, scale, rng, rejects)
        if wanted is None or prompts.size >= wanted:
            break
        scale *= 1.5
        round_number += 1
    if wanted is not None:
        keep = np.sort(rng.choice(prompts.size, size=wanted, replace=False))
        arrival_s, prompts, outputs = arrival_s[keep], prompts[keep], outputs[keep]
    if not prompts.size:
        raise DataError(
            "the draw gave no request", path=str(path), remedy="raise the rate or the duration"
        )
    meta: dict[str, Any] = {
        "format": "servegen",
        "source_file": Path(path).name,
        "seed": options.seed,
        "rate_scale": scale,
        "num_clients": len(usable),
    }
    without = [client.number for client in clients if not client.lengths]
    if without:
        total = sum(weights.values())
        meta["clients_without_lengths"] = without
        meta["their_share_of_requests"] = sum(weights[number] for number in without) / total
    return make_trace(
        name=trace_name(path),
        prompt_tokens=prompts,
        output_tokens=outputs,
        arrival_ps=np.rint((arrival_s - arrival_s[0]) * 1e12).astype(np.int64),
        meta=meta | rejects.as_meta(),
    )


def _expected(client: Client) -> float:
    return sum((w.end_s - w.start_s) * w.rate_per_s for w in client.windows)


def _draw(
    clients: list[Client], scale: float, rng: np.random.Generator, rejects: Rejects
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    times, prompts, outputs = [], [], []
    for client in clients:
        arrivals = _arrivals(client, scale, rng)
        starts = np.array([start for start, _, _ in client.lengths])
        which = np.clip(np.searchsorted(starts, arrivals, side="right") - 1, 0, None)
        prompt = np.zeros(arrivals.size, dtype=np.int64)
        output = np.zeros(arrivals.size, dtype=np.int64)
        for i, (_, input_tables, output_table) in enumerate(client.lengths):
            rows = np.flatnonzero(which == i)
            for table in input_tables:
                prompt[rows] += table.sample(rng, rows.size)
            output[rows] = output_table.sample(rng, rows.size)
        times.append(arrivals)
        prompts.append(prompt)
        outputs.append(output)
    time, prompt, output = np.concatenate(times), np.concatenate(prompts), np.concatenate(outputs)
    good = (prompt >= 1) & (output >= 1)
    for _ in range(int((~good).sum())):
        rejects.drop("zero tokens drawn from a length table")
    time, prompt, output = time[good], prompt[good], output[good]
    order = np.argsort(time, kind="stable")
    return time[order], prompt[order], output[order]


def _arrivals(client: Client, scale: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times: a renewal process with gaps of mean 1, run on a clock that ticks by the rate.

    The gap that a window leaves unfinished goes on in the next one, so the expected number of
    arrivals is the integral of the rate also where a window sees less than one request.
    """
    found: list[NDArray[np.float64]] = []
    left = -1.0
    for window in client.windows:
        rate = window.rate_per_s * scale
        if rate <= 0:
            continue
        budget = (window.end_s - window.start_s) * rate
        if left < 0:
            # The process did not begin at the span's start: it is met somewhere inside a gap.
            left = float(window.unit_gaps(rng, 1)[0] * rng.random())
        ticks = [np.array([left])]
        last = left
        while last < budget:
            gaps = window.unit_gaps(rng, int((budget - last) * 1.1) + 16)
            ticks.append(last + np.cumsum(gaps))
            last = float(ticks[-1][-1])
        clock = np.concatenate(ticks)
        inside = int(np.searchsorted(clock, budget))
        found.append(window.start_s + clock[:inside] / rate)
        left = float(clock[inside]) - budget
    return np.concatenate(found) if found else np.zeros(0)
