"""What limits a run: the resource that its GPUs wait for most of the time. Words and the choice;
the simulator counts the seconds."""

from __future__ import annotations

from batchgen.report import text
from batchgen.report.metrics import bct_s, bound_s, busy_fraction, tail10_s
from batchgen.report.record import RunRecord

RESOURCES = {
    "compute": "floating-point operations",
    "memory": "bandwidth of GPU memory",
    "links": "links between GPUs",
    "launches": "kernel launches and host work per pass",
    "host_link": "the link to the host",
    "disk": "disks",
    "cpu": "attention on the CPU",
}
"""Resource -> what people call it."""
IDLE = "nothing (idle)"

LAYERS = {
    "collectives": "links",
    "hops": "links",
    "overhead": "launches",
}
"""Modules of a cost model that are no layers -> their resource."""
BESIDE = {
    "host_link": "host_link",
    "disk": "disk",
    "attention_cpu": "cpu",
    "checkpoint": "host_link",
}
"""Modules that run beside the others of a pass."""
FULL = 0.95
"""Part of the KV pages that is leased at the peak where memory for KV is short."""


def shares(record: RunRecord) -> dict[str, float]:
    """Parts of the completion time by resource, the largest first, and the idle rest; they add up
    to 1. Empty where nobody has counted, as on a real machine."""
    seconds = record.config.get("resources_s") or {}
    bct, counted = bct_s(record), sum(seconds.values())
    if not bct or not counted:
        return {}
    busy = busy_fraction(record) or 0.0  # passes of a tail may take other times than counted
    found = {RESOURCES[name]: busy * part / counted for name, part in seconds.items()}
    found[IDLE] = max(0.0, 1.0 - busy)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def limiting(record: RunRecord) -> str | None:
    """The resource with the most time; of a GPU that is idle longer than that, why."""
    found = shares(record)
    if not found:
        return None
    first = next(iter(found))
    if first != IDLE:
        return first
    causes = record.config.get("tail_causes_s") or {}
    if causes and tail10_s(record) > 0.3 * bct_s(record):
        from batchgen.report.tail import CAUSES

        most = max(causes, key=lambda name: causes[name])
        return f"GPUs that wait for the end ({CAUSES[most]})"
    return "GPUs that wait"


def remarks(record: RunRecord, kv_peak: float | None) -> list[str]:
    """What else holds the run up, in words."""
    found = []
    bct, alone = bct_s(record), bound_s(record, "longest_row")
    if bct and alone is not None and alone > 0.5 * bct:
        found.append(f"the longest row alone takes {100 * alone / bct:.0f} % of the time")
    tail = tail10_s(record)
    if bct and tail > 0.4 * bct:
        found.append(f"the last 10 % of the rows take {100 * tail / bct:.0f} % of it")
    if kv_peak is not None and kv_peak >= FULL:
        found.append("memory for KV is full at the peak")
    if cut := text.cut_line(record.config.get("cut_at_context", {})):
        found.append(cut)
    return found
