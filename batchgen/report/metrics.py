"""Every metric of a run, each defined once, from a `RunRecord`. No formatting and no files here.

The window of a run is from the first arrival to the last end of a row (BCT); steps are clipped to
it. Sums of times are made in integers, so that shares of the window never exceed 1. Ratios without
a base (an empty run, an unknown peak) are None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchgen.report.record import (
    KIND_DECODE,
    KIND_MIXED,
    KIND_NAMES,
    KIND_PREFILL,
    STATUS_DONE,
    STATUS_FAILED,
    RunRecord,
    stage_column,
)
from batchgen.report.stretches import stretches
from batchgen.report.tail import CAUSES, column
from batchgen.units import to_s

TAIL_SHARE_DONE = 0.9
ROW_PERCENTILES = (50, 90, 99)
HEALTHY = ("bct_s", "done99_s", "tail10_s")
"""What is asked of a second run without device trouble."""


def window_ps(record: RunRecord) -> tuple[int, int]:
    """First arrival and last end of a row, failed rows included; (0, 0) if no row ended.

    A failed row that never ran and carries no end does not widen the window.
    """
    ended = record.rows["end_ps"] >= 0
    if not ended.any():
        return 0, 0
    start = int(record.rows["arrival_ps"].min())
    return start, max(start, int(record.rows["end_ps"][ended].max()))


def bct_s(record: RunRecord) -> float:
    """Batch completion time in seconds: first arrival to last end, without loading."""
    start, end = window_ps(record)
    return to_s(end - start)


def clipped_durations_ps(record: RunRecord) -> NDArray[np.int64]:
    """Duration of each step inside the window, int64 picoseconds, shape (steps,)."""
    return _clipped(record, record.steps["start_ps"], record.steps["duration_ps"])


def _clipped(
    record: RunRecord, start_ps: NDArray[np.int64], duration_ps: NDArray[np.int64]
) -> NDArray[np.int64]:
    start, end = window_ps(record)
    begin = np.clip(start_ps, start, end)
    return np.asarray(np.clip(start_ps + duration_ps, start, end) - begin, dtype=np.int64)


def busy_ps(record: RunRecord) -> NDArray[np.int64]:
    """Time of each step in passes inside the window, per GPU of its engine, shape (steps,). What a
    step of a pipeline waits, or its states travel, is not in it: there it is what all its stages
    together took, of `num_gpus` GPUs each."""
    clipped = clipped_durations_ps(record)
    if record.num_stages == 1:
        return clipped
    stages = range(record.num_stages)
    worked = np.sum([record.steps[stage_column(stage)] for stage in stages], axis=0)
    return np.asarray(np.minimum(worked, clipped), dtype=np.int64)


def step_gpus(record: RunRecord) -> NDArray[np.int64]:
    """GPUs of the engine of each step, shape (steps,)."""
    gpus = {int(e["engine"]): int(e["num_gpus"]) for e in record.engines}
    engines, index = np.unique(record.steps["engine"], return_inverse=True)
    return np.array([gpus[int(e)] for e in engines], dtype=np.int64)[index]


def gpu_ps_by_kind(record: RunRecord) -> dict[str, int]:
    """GPU-picoseconds inside the window spent in passes of each kind; keys of `KIND_NAMES`."""
    durations, gpus, kinds = busy_ps(record), step_gpus(record), record.steps["kind"]
    # Python integers: 10,000 GPUs for a day is 8.6e20 ps, more than int64 holds.
    totals = dict.fromkeys(KIND_NAMES, 0)
    for kind, name in enumerate(KIND_NAMES):
        for count in np.unique(gpus[kinds == kind]).tolist():
            totals[name] += count * int(durations[(kinds == kind) & (gpus == count)].sum())
    return totals


def time_split_s(record: RunRecord) -> dict[str, float]:
    """Seconds of BCT in decode, mixed and prefill passes and idle, mean over GPUs; sums to BCT.

    GPUs that belong to no engine count as idle.
    """
    gpus = max(record.num_gpus, 1)
    start, end = window_ps(record)
    by_kind = gpu_ps_by_kind(record)
    split = {name: to_s(total) / gpus for name, total in by_kind.items()}
    split["idle"] = to_s((end - start) * gpus - sum(by_kind.values())) / gpus
    return split


def busy_fraction(record: RunRecord) -> float | None:
    """Time in passes / BCT, mean over all GPUs of the run."""
    start, end = window_ps(record)
    total = (end - start) * record.num_gpus
    return sum(gpu_ps_by_kind(record).values()) / total if total else None


def _hardware_fraction(record: RunRecord, column: str, peak: str) -> float | None:
    amount = float(record.steps[column].sum())
    available = sum(float(e[peak]) for e in record.engines) * bct_s(record)
    return amount / available if amount > 0 and available > 0 else None


def mfu(record: RunRecord) -> float | None:
    """Model FLOPs / (peak FLOP/s x BCT), all engines; None if FLOPs or peaks are unknown."""
    return _hardware_fraction(record, "flops", "peak_flops")


def mbu(record: RunRecord) -> float | None:
    """HBM bytes moved / (peak bandwidth x BCT), all engines; None if either is unknown."""
    return _hardware_fraction(record, "hbm_bytes", "peak_bw")


def tail10_s(record: RunRecord) -> float:
    """Seconds from the end of 90 % of the rows to the end of all; rows without an end left out."""
    ends = np.sort(record.rows["end_ps"][record.rows["end_ps"] >= 0])
    if not len(ends):
        return 0.0
    # Integer arithmetic: ceil(0.9 * n) in floats is off by one where 0.9 * n is a whole number.
    num_done = (len(ends) * 9 + 9) // 10
    return to_s(int(ends[-1] - ends[num_done - 1]))


def done_s(record: RunRecord, percent: int) -> float:
    """Seconds from the first arrival until so many percent of the rows have ended; rows without an
    end left out."""
    start, _ = window_ps(record)
    ends = np.sort(record.rows["end_ps"][record.rows["end_ps"] >= 0])
    return to_s(int(ends[-(-len(ends) * percent // 100) - 1]) - start) if len(ends) else 0.0


def row_times_s(record: RunRecord) -> dict[str, NDArray[np.float64]]:
    """Times of the rows that finished, seconds: "ttft" from arrival to the first token, "tpot" from
    the first to the last over the tokens in between (rows of two tokens and more), "latency" from
    arrival to the end. Rows whose first token is not known count in the last only."""
    rows = record.rows
    done = (rows["status"] == STATUS_DONE) & (rows["end_ps"] >= 0)
    arrival, first, end = (rows[f"{name}_ps"] for name in ("arrival", "first_token", "end"))
    told = done & (first >= 0)
    several = told & (rows["output_tokens"] > 1)
    between = (end - first)[several] / (rows["output_tokens"][several] - 1)
    return {
        "ttft": (first - arrival)[told] / 1e12,
        "tpot": between / 1e12,
        "latency": (end - arrival)[done] / 1e12,
    }


def row_statistics(record: RunRecord) -> dict[str, float | None]:
    """Mean and percentiles of `row_times_s` as {"mean_ttft_s", "p50_ttft_s", ...}; None where no
    row has the time."""
    found: dict[str, float | None] = {}
    for name, times in row_times_s(record).items():
        found[f"mean_{name}_s"] = float(times.mean()) if len(times) else None
        for part in ROW_PERCENTILES:
            value = float(np.percentile(times, part)) if len(times) else None
            found[f"p{part}_{name}_s"] = value
    return found


def output_tokens(record: RunRecord) -> int:
    """Output tokens of the rows that finished."""
    return int(record.rows["output_tokens"][record.rows["status"] == STATUS_DONE].sum())


def prompt_tokens(record: RunRecord) -> int:
    """Prompt tokens of the rows that finished, each counted once however often computed."""
    return int(record.rows["prompt_tokens"][record.rows["status"] == STATUS_DONE].sum())


def prefix_hit_fraction(record: RunRecord) -> float:
    """Prompt tokens taken from shared prefix pages, of all that were taken or computed."""
    adopted = int(record.rows["adopted_tokens"].sum())
    computed = int(record.steps["prompt_tokens"].sum())
    return adopted / (adopted + computed) if adopted else 0.0


def kv_peak_fraction(record: RunRecord) -> float | None:
    """KV pages leased / pages of the pool: the largest over engines and passes, see `RunRecord`."""
    return _kv(record)[0]


def kv_mean_fraction(record: RunRecord) -> float | None:
    """KV pages leased / size, mean over BCT and engines by size; idle engines count as empty.

    A step counts with the most pages leased in it until rows end in it, see `stretches`.
    """
    return _kv(record)[1]


def _kv(record: RunRecord) -> tuple[float | None, float | None]:
    sizes = {int(e["engine"]): int(e["hbm_pages_total"]) for e in record.engines}
    start, end = window_ps(record)
    total = sum(sizes.values())
    if not total or end == start:
        return None, None
    engines, index = np.unique(record.steps["engine"], return_inverse=True)
    size = np.array([sizes[int(e)] for e in engines], dtype=np.float64)[index]
    pages = record.steps["kv_pages"]
    known = size > 0
    peak = float((pages[known] / size[known]).max()) if known.any() else None
    cut = stretches(record)
    held = float((cut.kv_pages * _clipped(record, cut.start_ps, cut.duration_ps)).sum())
    return peak, held / (total * (end - start))


def mean_running(record: RunRecord) -> float:
    """Rows running in the whole cluster, mean over BCT; each counts until its own end."""
    start, end = window_ps(record)
    if end == start:
        return 0.0
    cut = stretches(record)
    lasted = _clipped(record, cut.start_ps, cut.duration_ps)
    return float((cut.running.astype(np.float64) * lasted).sum()) / (end - start)


def mean_decode_batch(record: RunRecord) -> float | None:
    """Output tokens per pass in which rows decode, mixed ones too: the rows that such a pass of an
    engine serves, padding left out; rows whose prompt ends in it have their first token from it."""
    decoding = (record.steps["kind"] == KIND_DECODE) | (record.steps["kind"] == KIND_MIXED)
    passes = int(record.steps["passes"][decoding].sum())
    return int(record.steps["output_tokens"][decoding].sum()) / passes if passes else None


def failed_by_code(record: RunRecord) -> dict[str, int]:
    """How many rows failed for each reason, the commonest first; rows of the input that could not
    even begin (`config["refused_rows"]` of exec) are among them."""
    failed = np.flatnonzero(record.rows["status"] == STATUS_FAILED).tolist()
    codes = Counter(record.row_reasons[row] or "unfinished" for row in failed)
    codes.update(record.config.get("refused_rows", {}))
    return dict(sorted(codes.items(), key=lambda item: (-item[1], item[0])))


def bound_s(record: RunRecord, which: str) -> float | None:
    """A lower bound of BCT that the backend has worked out from its cost model
    (`batchgen.cost.bounds`): "longest_row" or "work"; None where there is no model of the cost, as
    on a real machine."""
    found = record.config.get("bounds", {}).get(f"{which}_s")
    return None if found is None else float(found)


def balance_bound_s(record: RunRecord) -> float:
    """What this run's own passes would take if perfectly balanced, in seconds.

    The larger of: time in passes, spread evenly over all GPUs; and the longest finished row alone,
    one token per pass of the shortest mean duration seen (as in the bound of longest processing
    time first). A yardstick for placement and tail, not a bound over all policies: passes of other
    batch sizes take other times. Never above BCT.
    """
    busy = to_s(sum(gpu_ps_by_kind(record).values())) / max(record.num_gpus, 1)
    produced = (record.steps["output_tokens"] > 0) & (record.steps["passes"] > 0)
    done = record.rows["status"] == STATUS_DONE
    chain = 0.0
    if produced.any() and done.any():
        steps = record.steps
        shortest = (steps["duration_ps"][produced] / steps["passes"][produced]).min()
        longest = int(record.rows["output_tokens"][done].max())
        chain = max(longest - 1, 0) * float(shortest) / 1e12
    return min(max(busy, chain), bct_s(record))


def layout_search(record: RunRecord) -> dict[str, Any] | None:
    """How many layouts a search compared, and the one behind the best; None: the layout was
    given. `run.json` has all of them."""
    found = record.config.get("layout_search")
    if found is None:
        return None
    return {"candidates": len(found["candidates"]), "runner_up": found["runner_up"]}


def tail_causes_s(record: RunRecord) -> dict[str, float | None]:
    """What the simulator found the last 10 % to come from, as {"tail_long_rows_s", ...}; None where
    nobody has found out, as on a real machine. They add up to `tail10_s`."""
    found = record.config.get("tail_causes_s") or {}
    return {column(cause): found.get(cause) for cause in CAUSES}


def barrier_of(record: RunRecord) -> dict[str, float | None]:
    """How long ranks of an engine wait for the others, mean over engines, in passes with prompts
    and in others; None: they have one rank, or nobody knows."""
    found = record.config.get("barrier_s") or {}
    return {f"barrier_{kind}_s": found.get(kind) for kind in ("prompts", "decodes")}


def without_faults(record: RunRecord) -> dict[str, float | None]:
    """What a second run without device trouble took (`--without-faults`); None: there was none."""
    found = record.config.get("without_faults") or {}
    return {f"without_faults_{name}": found.get(name) for name in HEALTHY}


def predictor_quality(record: RunRecord) -> dict[str, float | int | None]:
    """Kendall's tau-b between predicted and true output lengths, and of how many rows lengths were
    predicted; None: of none, all alike, or nobody has found out, as on a real machine."""
    found = record.config.get("predictor") or {}
    return {"predictor_tau": found.get("tau"), "predicted_rows": found.get("rows")}


def overrides(record: RunRecord) -> str:
    """What `--set` changed, as "slot.option=value", with spaces between; empty: nothing."""
    job = record.config.get("job")
    pairs = job.get("overrides", ()) if isinstance(job, dict) else ()
    return " ".join(f"{key}={value}" for key, value in pairs)


def names(policies: Sequence[str], changes: Sequence[str]) -> list[str]:
    """What to call runs beside each other: their policies; where two share one, with what was
    changed; where that is the same too, with a number."""
    found = [
        f"{name} {change}".rstrip() if policies.count(name) > 1 and len(set(changes)) > 1 else name
        for name, change in zip(policies, changes, strict=True)
    ]
    return [
        f"{name} ({found[: i + 1].count(name)})" if found.count(name) > 1 else name
        for i, name in enumerate(found)
    ]


def summary(record: RunRecord) -> dict[str, Any]:
    """All metrics as a JSON-able dict; what `--json` prints and `summary.json` holds.

    Names carry their units. Times are seconds; fractions are 0 to 1; None where there is no base.
    """
    rows, steps = record.rows, record.steps
    bct = bct_s(record)
    split = time_split_s(record)
    out, prompt = output_tokens(record), prompt_tokens(record)
    gpu_hours = None if record.gpu == "cpu" else record.num_gpus * bct / 3600
    price = record.gpu_price_per_hour
    kv_peak, kv_mean = _kv(record)
    return {
        "policy": record.policy,
        "overrides": overrides(record),
        "backend": record.backend,
        "model": record.model,
        "gpu": record.gpu,
        "layout": record.layout,
        "num_gpus": record.num_gpus,
        "num_engines": len(record.engines),
        "rows": len(rows["row"]),
        "finished_rows": int((rows["status"] == STATUS_DONE).sum()),
        "failed_rows": int((rows["status"] == STATUS_FAILED).sum()),
        "failed_by_code": failed_by_code(record),
        # `cut_rows` and `context_tokens`, only of a simulation that has some.
        **record.config.get("cut_at_context", {}),
        "bct_s": bct,
        "output_tokens_per_s": out / bct if bct else None,
        "total_tokens_per_s": (prompt + out) / bct if bct else None,
        "busy_fraction": busy_fraction(record),
        "mfu": mfu(record),
        "mbu": mbu(record),
        "tail10_s": tail10_s(record),
        "done99_s": done_s(record, 99),
        **tail_causes_s(record),
        **barrier_of(record),
        **without_faults(record),
        **predictor_quality(record),
        **row_statistics(record),
        "preemptions": int(rows["preemptions"].sum()),
        "recomputed_tokens": int(rows["recomputed_tokens"].sum()),
        "adopted_tokens": int(rows["adopted_tokens"].sum()),
        "prefix_hit_fraction": prefix_hit_fraction(record),
        "migrations": int(rows["migrations"].sum()),
        "suspensions": int(rows["suspensions"].sum()),
        "kv_peak_fraction": kv_peak,
        "kv_mean_fraction": kv_mean,
        "mean_running": mean_running(record),
        "mean_decode_batch": mean_decode_batch(record),
        "gpu_hours": gpu_hours,
        "cost_usd": gpu_hours * price if gpu_hours is not None and price else None,
        "passes": int(steps["passes"].sum()),
        "steps": len(steps["q0"]),
        "decode_s": split[KIND_NAMES[KIND_DECODE]],
        "mixed_s": split[KIND_NAMES[KIND_MIXED]],
        "prefill_s": split[KIND_NAMES[KIND_PREFILL]],
        "idle_s": split["idle"],
        "longest_row_bound_s": bound_s(record, "longest_row"),
        "work_bound_s": bound_s(record, "work"),
        "balance_bound_s": balance_bound_s(record),
        "prompt_tokens": prompt,
        "output_tokens": out,
        "faults": sum(mark["kind"] == "fault" for mark in record.marks),
        # What is known of the error of such a simulation (`batchgen.cost.residuals`); None: it ran.
        "residual": record.config.get("residual"),
        "layout_search": layout_search(record),
        # Kernels whose measured times are of other GPUs.
        "guessed_kernels": ", ".join(record.config.get("cost", {}).get("extrapolated", ())),
        "wall_s": record.wall_s,
    }
