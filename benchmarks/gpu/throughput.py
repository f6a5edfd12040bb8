"""A throughput cell: a closed batch through the runtime, the driver and the GPU's worker."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loads import DEPTH, FULL, MODELS, PAGE_TOKENS, TOKEN_BUDGET, Load, lengths
from torch.profiler import ProfilerActivity, profile

from batchgen import events as ev
from batchgen.catalog.hf_config import spec_from_config
from batchgen.cost.phase_sum import PhaseSum
from batchgen.exec.clock import WallClock
from batchgen.exec.config import load_config
from batchgen.exec.driver import Driver
from batchgen.exec.gpu.worker import QueuedWorker
from batchgen.exec.job import CAPABILITIES
from batchgen.exec.random_weights import random_model
from batchgen.exec.rows import RowInput
from batchgen.plan import EngineSpec, Plan
from batchgen.policy.presets import build_policy, find_preset
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table

MOST_SEATS = 1024
SPARE_BYTES = 2 << 30  # beside what the largest pass takes: graphs, and what torch cannot use


class Over(Exception):
    """The time of a cell is over."""


def run(
    load: Load, *, policy: str, seconds: float, device: str, rows: int, kernels: int = 0
) -> dict[str, Any]:
    """Run a cell; what came of it. `kernels`: steps at the end whose kernels are listed."""
    began = time.perf_counter()
    shape = MODELS[load.model]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        config = load_config(Path(folder))
    model = random_model(config, dtype="bfloat16", device=device)
    worker = QueuedWorker(
        model, page_tokens=PAGE_TOKENS, hbm_pages=2, host_pages=0, dtype="bfloat16", device=device
    )
    load_s = time.perf_counter() - began
    most = MOST_SEATS if device == "cuda" else 4
    taken = worker.warm_up(token_budget=TOKEN_BUDGET, seats=most)
    warm_s = time.perf_counter() - began - load_s
    prompts, outputs = lengths(load, rows)
    row_pages = -(-(prompts + outputs) // PAGE_TOKENS)
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        pages = int((free - taken - SPARE_BYTES) // worker.page_bytes)
    else:
        pages = 64
    seats = int(min(MOST_SEATS, rows, pages // row_pages.mean()))
    worker.resize(hbm_pages=pages, host_pages=0)
    preset = find_preset(policy)
    plan = Plan(
        page_tokens=PAGE_TOKENS,
        boundary=preset.boundary,
        engines=(EngineSpec(engine=0, node=0, hbm_pages=pages),),
        token_budget=TOKEN_BUDGET,
        max_num_seqs=seats,
        max_context=config.max_context,
        depth=DEPTH,
    )
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, int(prompts.max()) + rows)

    def source(row: int) -> RowInput:
        ids = tokens[row : row + int(prompts[row])]
        return RowInput(prompt_ids=ids, max_output=int(outputs[row]), stop_ids=frozenset())

    table = Table(prompts.tolist(), outputs.tolist())
    runtime = Runtime(table, plan, build_policy(preset, {}, CAPABILITIES))
    end = [0.0]

    watched: list[Any] = []

    def progress(now_ps: int, done: int, total: int) -> None:
        if time.perf_counter() < end[0]:
            return
        if not kernels:
            raise Over
        if not watched:
            watched.append(profile(activities=[ProfilerActivity.CUDA]))
            watched.append(0)
            watched[0].__enter__()
        watched[1] += 1
        if watched[1] > kernels:
            torch.cuda.synchronize()
            watched[0].__exit__(None, None, None)
            raise Over

    def job(most_s: float) -> Driver:
        worker.feed(source)
        driver = Driver(runtime, worker, WallClock(), progress=progress)
        driver.schedule(ev.Arrived(list(range(rows))), 0)
        driver.schedule(ev.InputClosed(), 0)
        end[0] = time.perf_counter() + most_s
        with contextlib.suppress(Over):
            driver.run()
        return driver

    driver = job(seconds)
    if device == "cuda":
        torch.cuda.synchronize()
    if watched:
        entries = sorted(watched[0].key_averages(), key=lambda one: -one.self_device_time_total)
        for one in entries[:30]:
            print(f"{one.self_device_time_total / 1e3:10.3f} ms {one.count:7} {one.key[:90]}")
    passes = {name: np.array(column) for name, column in driver.record.passes.items()}
    graphs = worker._graphs
    return {
        "policy": policy,
        "rows": rows,
        "seats": seats,
        "kv_pages": pages,
        "load_s": load_s,
        "warm_up_s": warm_s,
        "pass_bytes": taken,
        "graphs": 0 if graphs is None else len(graphs),
        "passes": passes,
        "spec": spec_from_config(shape, name=load.model, place="cells"),
    }


def summary(found: dict[str, Any], load: Load, ceilings: dict[str, float]) -> dict[str, Any]:
    """Rates, and shares of the bounds."""
    passes, seats = found.pop("passes"), found["seats"]
    bound = PhaseSum(
        model=found.pop("spec"),
        matmul_flops_per_s=ceilings["matmul_bf16"],
        memory_bytes_per_s=ceilings["device_copy"],
    )
    took = (passes["duration_ps"] + passes["gap_ps"]) / 1e12
    at_best = np.array(
        [
            bound.pass_s(
                decodes=int(passes["decodes"][i]),
                context_tokens=int(passes["context"][i]),
                chunk_tokens=int(passes["chunk_tokens"][i]),
                chunk_pairs=int(passes["chunk_pairs"][i]),
                samples=int(passes["samples"][i]),
            )
            for i in range(len(took))
        ]
    )
    steady = passes["decodes"] >= FULL * seats
    only = steady & (passes["chunk_tokens"] == 0)
    formula = bound.steady_output_tokens_per_s(
        prompt_tokens=load.prompt_tokens, output_tokens=load.output_tokens, rows=seats
    )
    line = {
        "passes": len(took),
        "run_s": float(took.sum()),
        "output_tokens": int(passes["samples"].sum()),
        "bound_tokens_per_s": formula,
    }
    for name, chosen in (("all", slice(None)), ("steady", steady), ("steady_decode", only)):
        spent = float(took[chosen].sum())
        if spent:
            line[name] = {
                "passes": len(took[chosen]),
                "seconds": spent,
                "output_tokens_per_s": float(passes["samples"][chosen].sum() / spent),
                "prompt_tokens_per_s": float(passes["chunk_tokens"][chosen].sum() / spent),
                "share_of_its_passes_bound": float(at_best[chosen].sum() / spent),
                "median_pass_ms": float(np.median(took[chosen]) * 1e3),
                "median_bound_ms": float(np.median(at_best[chosen]) * 1e3),
            }
    told = line.get("steady", line["all"])
    line["summary"] = (
        f"{told['output_tokens_per_s']:,.0f} output tokens/s with most seats taken, "
        f"{told['share_of_its_passes_bound']:.0%} of the phase-sum bound of these passes"
    )
    return found | line
