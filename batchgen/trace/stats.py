"""Statistics of a trace: lengths, tokens, ideal prefix hits, arrivals, groups. Draws no picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchgen.trace.stages import Stages
from batchgen.trace.table import Trace

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
PS_PER_S = 1e12


def describe(trace: Trace) -> dict[str, Any]:
    """The statistics as plain JSON values; lengths in tokens, times in seconds.

    `prefix` is there only if rows have prefix blocks, `groups` only if rows have groups, `stages`
    only if rows have stages (`prompt_tokens` and `output_tokens` are of first stages then),
    `expert_skew` and `max_output_tokens` only if set. Percentiles interpolate linearly.
    """
    stats: dict[str, Any] = {
        "name": trace.name,
        "rows": len(trace),
        "prompt_tokens": length_stats(trace.prompt_tokens),
        "output_tokens": length_stats(trace.output_tokens),
    }
    stats["total_tokens"] = stats["prompt_tokens"]["total"] + stats["output_tokens"]["total"]
    if trace.stages is not None:
        stats["stages"] = stage_stats(trace.stages)
        for column in ("prompt_tokens", "output_tokens"):
            stats["total_tokens"] += stats["stages"][column]["total"]
    if len(trace) and trace.max_output_tokens.any():
        stats["max_output_tokens"] = length_stats(trace.max_output_tokens)
    stats["arrivals"] = arrival_stats(trace.arrival_ps)
    if trace.prefix_blocks.size:
        stats["prefix"] = prefix_stats(trace)
    grouped = trace.group[trace.group >= 0]
    if grouped.size:
        sizes = np.unique(grouped, return_counts=True)[1]
        stats["groups"] = {
            "count": int(sizes.size),
            "smallest": int(sizes.min()),
            "mean": float(sizes.mean()),
            "largest": int(sizes.max()),
        }
    if trace.expert_skew:
        stats["expert_skew"] = trace.expert_skew
    for key in ("skipped", "dropped"):
        if key in trace.meta:
            stats[key] = trace.meta[key]
    return stats


def length_stats(tokens: NDArray[np.int32]) -> dict[str, float | int]:
    """mean, percentiles (p50 ... p99.9), max and total of a column of token counts."""
    if not tokens.size:
        return {"total": 0}
    found: dict[str, float | int] = {"mean": float(tokens.mean())}
    for share, value in zip(PERCENTILES, np.percentile(tokens, PERCENTILES), strict=True):
        found[f"p{share:g}"] = float(value)
    return found | {"max": int(tokens.max()), "total": int(tokens.sum(dtype=np.int64))}


def stage_stats(stages: Stages) -> dict[str, Any]:
    """Stages after the first: how many, their follow-ups and outputs in tokens, waits in s."""
    counts, waits = stages.counts, stages.wait_ps / PS_PER_S
    return {
        "count": int(stages.prompt_tokens.size),
        "rows": int((counts > 0).sum()),
        "most": int(counts.max()),
        "prompt_tokens": length_stats(stages.prompt_tokens),
        "output_tokens": length_stats(stages.output_tokens),
        "wait_mean_s": float(waits.mean()),
        "wait_max_s": float(waits.max()),
    }


def arrival_stats(arrival_ps: NDArray[np.int64]) -> dict[str, float | bool | None]:
    """Span in s, mean rate per s, and the variation coefficient of the gaps (1 for Poisson).

    Rate and variation are None when all rows arrive together.
    """
    if arrival_ps.size < 2:
        return {"span_s": 0.0, "rate_per_s": None, "gap_cv": None, "sorted": True}
    in_order = bool((np.diff(arrival_ps) >= 0).all())
    gaps = np.diff(np.sort(arrival_ps)) / PS_PER_S
    span_s = float(arrival_ps.max() - arrival_ps.min()) / PS_PER_S
    together = span_s == 0
    return {
        "span_s": span_s,
        "rate_per_s": None if together else gaps.size / span_s,
        "gap_cv": None if together else float(gaps.std() / gaps.mean()),
        "sorted": in_order,
    }


def prefix_stats(trace: Trace) -> dict[str, float | int]:
    """Ideal reuse: an infinite cache, whole blocks, every earlier row's prompt in it.

    `hit_ratio` counts blocks: one minus distinct over all. An id stands for its whole leading
    chain, so a block is a hit exactly when its id was seen before.
    """
    blocks = int(trace.prefix_blocks.size)
    distinct = int(np.unique(trace.prefix_blocks).size)
    return {
        "block_tokens": trace.prefix_block_tokens,
        "blocks": blocks,
        "distinct_blocks": distinct,
        "hit_ratio": 1.0 - distinct / blocks,
        "rows_with_prefix": int((np.diff(trace.prefix_offsets) > 0).sum()),
    }
