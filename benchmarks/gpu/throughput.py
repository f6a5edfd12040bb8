"""A throughput cell: a closed batch through the runtime, the driver and the GPU's worker."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loads import DEPTH, MODELS, PAGE_TOKENS, TOKEN_BUDGET, Load, lengths
from torch.profiler import ProfilerActivity, profile

from batchgen import events as ev
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
CPU_PAGES, CPU_SEATS = 64, 4  # where the device is the CPU: to see that it runs
LISTED = 30  # kernels
# Counters of torch's allocator: what makes a pass wait while the device's memory is rearranged.
COUNTERS = ("num_alloc_retries", "num_device_alloc", "num_device_free", "num_ooms")


class Over(Exception):
    """The time of a cell is over."""


class Watch:
    """The driver's progress: ends a job after `seconds`, then lists the kernels of `kernels` more
    steps, if any."""

    def __init__(self, seconds: float, kernels: int) -> None:
        self._end_s = time.perf_counter() + seconds
        self._steps_left = kernels
        self._profile: Any = None

    def look(self) -> None:
        """Before each pass: a step may hold those of a whole generation."""
        if not self._steps_left and time.perf_counter() >= self._end_s:
            raise Over

    def __call__(self, now_ps: int, done: int, total: int) -> None:
        if time.perf_counter() < self._end_s:
            return
        if self._steps_left and self._profile is None:
            self._profile = profile(activities=[ProfilerActivity.CUDA])
            self._profile.__enter__()
        elif self._steps_left:
            self._steps_left -= 1
        if not self._steps_left:
            raise Over

    def tell(self) -> None:
        """Print the kernels that took longest."""
        if self._profile is None:
            return
        torch.cuda.synchronize()
        self._profile.__exit__(None, None, None)
        entries = sorted(self._profile.key_averages(), key=lambda one: -one.self_device_time_total)
        for one in entries[:LISTED]:
            print(f"{one.self_device_time_total / 1e3:10.3f} ms {one.count:7} {one.key[:90]}")


class Beside:
    """What passes have cost beside their kernels: launches by the host, kernels that were compiled
    or loaded, memory that was rearranged."""

    def __init__(self, worker: QueuedWorker) -> None:
        self._worker = worker
        self.launch_s: list[float] = []
        self.compiled: list[dict[str, Any]] = []
        self._before: dict[str, int] = {}

    @contextlib.contextmanager
    def noted(self, watch: Watch) -> Iterator[None]:
        """Note it meanwhile, and let `watch` look before each pass."""
        from triton import knobs

        launch = self._worker.launch_pass

        def launched(*arguments: Any) -> Any:
            watch.look()
            begin = time.perf_counter()
            flight = launch(*arguments)
            self.launch_s.append(time.perf_counter() - begin)
            return flight

        def compiled(*, src: Any, cache_hit: bool, **_: Any) -> None:
            name = str(getattr(src, "name", "unknown"))
            one = {"kernel": name, "pass": len(self.launch_s), "from_disk": cache_hit}
            self.compiled.append(one)

        self._worker.launch_pass = launched  # type: ignore[method-assign]
        knobs.compilation.listener = compiled
        self._before.update(self._counters())
        try:
            yield
        finally:
            self._worker.launch_pass = launch  # type: ignore[method-assign]
            knobs.compilation.listener = None

    def told(self) -> dict[str, Any]:
        after = self._counters()
        return {
            "compiled": self.compiled,
            "memory": {name: after[name] - self._before[name] for name in after},
            "median_launch_ms": float(np.median(self.launch_s) * 1e3) if self.launch_s else 0.0,
        }

    def _counters(self) -> dict[str, int]:
        if self._worker.device != "cuda":
            return {}
        found = torch.cuda.memory_stats()
        return {name: int(found.get(name, 0)) for name in COUNTERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A worker with a model and memory, and the plan of its job. `facts`: for the report."""

    worker: QueuedWorker
    plan: Plan
    facts: dict[str, Any]


def make_ready(load: Load, rows: int, device: str, boundary: int) -> Ready:
    """Random weights on the device, kernels compiled, KV in all memory that is left."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODELS[load.model]))
        config = load_config(Path(folder))
    model = random_model(config, dtype="bfloat16", device=device)
    worker = QueuedWorker(
        model, page_tokens=PAGE_TOKENS, hbm_pages=2, host_pages=0, dtype="bfloat16", device=device
    )
    loaded = time.perf_counter()
    on_gpu = device == "cuda"
    taken = worker.warm_up(token_budget=TOKEN_BUDGET, seats=MOST_SEATS if on_gpu else CPU_SEATS)
    warm = time.perf_counter()
    pages = CPU_PAGES
    if on_gpu:
        free, _ = torch.cuda.mem_get_info()
        pages = int((free - taken - SPARE_BYTES) // worker.page_bytes)
    prompts, outputs = lengths(load, rows)
    row_pages = -(-(prompts + outputs) // PAGE_TOKENS)
    seats = int(min(MOST_SEATS, rows, pages // row_pages.mean()))
    worker.resize(hbm_pages=pages, host_pages=0)
    plan = Plan(
        page_tokens=PAGE_TOKENS,
        boundary=boundary,
        engines=(EngineSpec(engine=0, node=0, hbm_pages=pages),),
        token_budget=TOKEN_BUDGET,
        max_num_seqs=seats,
        max_context=config.max_context,
        depth=DEPTH,
    )
    facts = {
        "rows": rows,
        "seats": seats,
        "kv_pages": pages,
        "load_s": loaded - began,
        "warm_up_s": warm - loaded,
        "pass_bytes": taken,
    }
    return Ready(worker=worker, plan=plan, facts=facts)


def source_of(load: Load, rows: int, vocab_size: int) -> Any:
    """Random prompts: each row a window of the same tokens."""
    prompts, outputs = lengths(load, rows)
    tokens = np.random.default_rng(1).integers(0, vocab_size, int(prompts.max()) + rows)

    def source(row: int) -> RowInput:
        ids = tokens[row : row + int(prompts[row])]
        return RowInput(prompt_ids=ids, max_output=int(outputs[row]), stop_ids=frozenset())

    return source


def run(
    load: Load,
    *,
    policy: str,
    seconds: float,
    device: str,
    rows: int,
    kernels: int = 0,
    before_s: float = 0.0,
) -> dict[str, Any]:
    """Run a cell; what came of it, and the columns of its `passes`. `kernels`: steps at the end
    whose kernels are listed; `before_s`: the same job runs so long before it counts, and its passes
    are `passes_before`: what only first passes cost is the difference."""
    preset = find_preset(policy)
    ready = make_ready(load, rows, device, preset.boundary)
    found: dict[str, Any] = {"policy": policy, **ready.facts}
    if before_s:
        first = Job(ready, load, policy)
        first.run(Watch(before_s, 0))
        found["passes_before"], found["beside_before"] = first.passes, first.beside.told()
        first.forget()
    job, watch = Job(ready, load, policy), Watch(seconds, kernels)
    whole = job.run(watch)
    watch.tell()
    graphs = ready.worker._graphs
    return found | {
        "graphs": 0 if graphs is None else len(graphs),
        "whole": whole,
        "beside": job.beside.told(),
        "passes": job.passes,
    }


class Job:
    """A closed batch of a load on a worker that has no rows."""

    def __init__(self, ready: Ready, load: Load, policy: str) -> None:
        self.worker, self.rows = ready.worker, ready.facts["rows"]
        prompts, outputs = lengths(load, self.rows)
        table = Table(prompts.tolist(), outputs.tolist())
        policy_parts = build_policy(find_preset(policy), {}, CAPABILITIES)
        self._runtime = Runtime(table, ready.plan, policy_parts)
        self.beside = Beside(self.worker)
        self.worker.feed(source_of(load, self.rows, self.worker.config.vocab_size))
        self.passes: dict[str, Any] = {}

    def run(self, watch: Watch) -> bool:
        """Until it ends or `watch` ends it; returns whether it has ended by itself."""
        driver = Driver(self._runtime, self.worker, WallClock(), progress=watch)
        driver.schedule(ev.Arrived(list(range(self.rows))), 0)
        driver.schedule(ev.InputClosed(), 0)
        whole = False
        with contextlib.suppress(Over), self.beside.noted(watch):
            driver.run()
            whole = True
        if self.worker.device == "cuda":
            torch.cuda.synchronize()
        self.passes = {name: np.array(column) for name, column in driver.record.passes.items()}
        self.passes["launch_s"] = np.array(self.beside.launch_s[: len(self.passes["decodes"])])
        return whole

    def forget(self) -> None:
        """Free what its rows hold."""
        for row in range(self.rows):
            self.worker.forget_row(row)
