"""A toy continuous-batching cluster that fills a RunRecord. Not a model of anything real."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchgen.report.record import FLOAT_COLUMNS, ROW_COLUMNS, STEP_COLUMNS, RunRecord

SECOND = 10**12


def empty_columns(names: tuple[str, ...], length: int) -> dict[str, Any]:
    kinds = {n: np.float64 if n in FLOAT_COLUMNS else np.int64 for n in names}
    return {n: np.zeros(length, dtype=kinds[n]) for n in names}


def toy_record(
    *,
    policy: str = "batchgen",
    num_rows: int = 600,
    num_engines: int = 16,
    gpus_per_engine: int = 1,
    slots: int = 16,
    refill: bool = True,
    seed: int = 0,
    faults: bool = False,
) -> RunRecord:
    """Each engine serves its own queue; `refill=False` waits for a whole batch, as static does."""
    rng = np.random.default_rng(seed)
    rows = empty_columns(ROW_COLUMNS, num_rows)
    rows["row"] = np.arange(num_rows)
    rows["prompt_tokens"] = rng.integers(10, 2000, num_rows)
    rows["output_tokens"] = np.maximum(rng.lognormal(5.5, 1.0, num_rows).astype(np.int64), 1)
    rows["engine"] = rows["row"] % num_engines
    rows["first_token_ps"][:] = -1
    rows["end_ps"][:] = -1
    steps: list[tuple[Any, ...]] = []
    marks: list[dict[str, Any]] = []
    for engine in range(num_engines):
        queue = np.flatnonzero(rows["engine"] == engine).tolist()
        running: dict[int, int] = {}
        now, q0 = int(rng.integers(0, SECOND)), 0
        slow = 1.0
        while queue or running:
            if faults and engine == 3 and now > 20 * SECOND and slow == 1.0:
                slow = 2.5
                marks.append({"t_ps": now, "engine": 3, "kind": "fault", "text": "slow: x0.4"})
            joined = []
            if refill or not running:
                while queue and len(running) + len(joined) < slots:
                    joined.append(queue.pop(0))
            if joined:
                tokens = int(sum(rows["prompt_tokens"][r] for r in joined))
                duration = int(SECOND * (0.02 + 4e-5 * tokens) * slow)
                kind = 1 if running else 2
                for r in joined:
                    running[r] = int(rows["output_tokens"][r])
                    rows["first_token_ps"][r] = now + duration
                out, passes = len(running), 1
            else:
                passes = min(min(running.values()), 64)
                duration = int(passes * SECOND * (0.03 + 5e-4 * len(running)) * slow)
                tokens, kind, out = 0, 0, passes * len(running)
            count = len(running)
            now += duration
            ended = []
            for r in list(running):
                running[r] -= passes
                if running[r] <= 0:
                    ended.append(r)
                    rows["end_ps"][r] = now
                    del running[r]
            pages = 30 * len(running)
            flops, moved = 1e12 * (tokens + out), 1e10 * passes
            shape = (engine, q0, passes, now - duration, duration, kind, count, tokens, out)
            steps.append((*shape, len(ended), pages, flops, moved))
            q0 += passes
            if faults and engine == 7 and now > 15 * SECOND:
                marks.append({"t_ps": now, "engine": 7, "kind": "fault", "text": "lost"})
                now += 12 * SECOND
                marks.append({"t_ps": now, "engine": 7, "kind": "fault", "text": "back"})
                faults = engine != 7
    table = empty_columns(STEP_COLUMNS, len(steps))
    for i, name in enumerate(STEP_COLUMNS):
        table[name][:] = [s[i] for s in steps]
    return RunRecord(
        policy=policy,
        backend="sim",
        model="toy-8b",
        gpu="h100",
        layout=f"tp{gpus_per_engine}",
        num_gpus=num_engines * gpus_per_engine,
        config={"seed": seed, "trace": "toy.jsonl"},
        rows=rows,
        row_reasons=["length"] * num_rows,
        steps=table,
        marks=marks,
        engines=[
            {
                "engine": e,
                "node": e // 8,
                "num_gpus": gpus_per_engine,
                "hbm_pages_total": 1000,
                "peak_flops": 1e15 * gpus_per_engine,
                "peak_bw": 3e12 * gpus_per_engine,
            }
            for e in range(num_engines)
        ],
        wall_s=0.5,
        gpu_price_per_hour=2.0,
    )
