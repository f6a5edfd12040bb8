"""What a device trace comes to: losses, slowness, capacity. Draws no picture, prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from batchgen.trace.devices.compose import Change, compose
from batchgen.trace.devices.events import KINDS, NORMAL, DeviceTrace

HOUR_PS = 3600 * 10**12


@dataclass(slots=True)
class Stay:
    """One GPU in one state for a while. factor: time of its passes in thousandths, 0 if lost."""

    gpu: int
    begin_ps: int
    end_ps: int
    factor: int
    noticed: bool = False


def stays(changes: Iterable[Change], num_gpus: int, end_ps: int) -> Iterator[Stay]:
    """Every state that GPUs with troubles were in, by GPU and time. GPUs without have none."""
    ordered = sorted(
        (one for one in changes if one.gpu >= 0 and one.at_ps < end_ps),
        key=lambda one: one.gpu,
    )
    for gpu, group in groupby(ordered, key=lambda one: one.gpu):
        state, since, down, noticed = NORMAL, 0, False, False
        for change in group:
            if change.at_ps > since:
                yield Stay(gpu, since, change.at_ps, 0 if down else state, noticed)
                since = change.at_ps
            if change.kind == "slow":
                state = change.speed
            elif change.kind in ("lost", "back", "notice"):
                down, noticed = change.kind == "lost", change.kind == "notice"
        yield Stay(gpu, since, end_ps, 0 if down else state, noticed)


def describe(trace: DeviceTrace) -> dict[str, Any]:
    """Statistics as plain data. `capacity` is the mean over GPUs and time of 0 where a GPU is lost,
    else 1 over its factor; an engine of several GPUs has less, as it waits for its slowest."""
    num_gpus, per_node = trace.sizes()
    end_ps = max(trace.end_ps, 1)
    changes = compose(trace.troubles, num_gpus, per_node)
    lost_ps = slow_ps = 0
    missing = 0.0
    worst = NORMAL
    for stay in stays(changes, num_gpus, end_ps):
        span = stay.end_ps - stay.begin_ps
        if stay.factor == 0:
            lost_ps += span
            missing += span
        elif stay.factor != NORMAL:
            slow_ps += span if stay.factor > NORMAL else 0
            missing += span * (1 - NORMAL / stay.factor)
            worst = max(worst, stay.factor)
    outages = _outages(changes, end_ps)
    total = num_gpus * end_ps
    losses = [one for one in changes if one.kind == "lost" and one.at_ps < end_ps]
    later = [one for one in losses if one.at_ps]
    bursts = [len(list(group)) for _, group in groupby(later, key=lambda one: one.at_ps)]
    skews = [one.factor / NORMAL for one in trace.troubles if one.kind == "skew"]
    found: dict[str, Any] = {
        "name": trace.name,
        "lines": len(trace.troubles),
        "gpus": num_gpus,
        "gpus_per_node": per_node,
        "span_h": end_ps / HOUR_PS,
        "kinds": {
            kind: count
            for kind in KINDS
            if (count := sum(one.kind == kind for one in trace.troubles))
        },
        "losses": len(losses),
        "mtbf_gpu_h": (total - lost_ps) / HOUR_PS / len(later) if later else None,
        "lost_share": lost_ps / total,
        "slow_share": slow_ps / total,
        "worst_factor": worst / NORMAL,
        "capacity": 1 - missing / total,
    }
    if outages:
        found["outage_h"] = _quantiles(outages)
    if bursts:
        found["burst_gpus"] = _quantiles([float(one) for one in bursts])
    if skews:
        found["skew"] = _quantiles(skews)
    return found


def _outages(changes: Iterable[Change], end_ps: int) -> list[float]:
    """Hours of each loss, of those that are over within the trace."""
    ordered = sorted((one for one in changes if one.kind in ("lost", "back")), key=_by_gpu)
    return [
        (after.at_ps - before.at_ps) / HOUR_PS
        for before, after in pairwise(ordered)
        if before.gpu == after.gpu and before.kind == "lost" and after.at_ps <= end_ps
    ]


def _by_gpu(change: Change) -> int:
    return change.gpu


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    last = len(ordered) - 1
    found = {name: ordered[min(last, int(share * len(ordered)))] for name, share in at.items()}
    return found | {"mean": sum(ordered) / len(ordered), "max": ordered[-1]}
