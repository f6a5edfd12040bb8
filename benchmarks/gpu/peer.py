"""The first requests of a cell by batchgen and by the continuous batching of transformers.

    python benchmarks/gpu/peer.py --cell qwen3-8b-512-512 --rows 64 --seconds 120 --out peer.json

Each system is a process of its own with random weights of the same shape, greedy, and every row
produces all its tokens. transformers is used as it is installed: its own choice of attention, of
graphs and of memory, told only how long rows are, which `generate_batch` tells it too. It is cut
after `--seconds`; what it has produced by then counts. Rates are output tokens over the time from
the first request to the last token, without loading and warming up.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loads import CELLS, MODELS, Load, lengths

CELL, ROWS, SECONDS = "qwen3-8b-512-512", 64, 120.0
SYSTEMS = ("batchgen", "transformers")
LOADING_S = 60.0  # that loading and warming up may take on top
TARGET = 5.0  # times as fast


def prompts_of(load: Load, rows: int) -> tuple[list[list[int]], list[int]]:
    """Token ids and output tokens of the requests: those of the cell (`throughput.source_of`)."""
    from throughput import source_of

    source = source_of(load, rows, MODELS[load.model]["vocab_size"])
    _, outputs = lengths(load, rows)
    return [list(map(int, source(row).prompt_ids)) for row in range(rows)], outputs.tolist()


def by_batchgen(load: Load, rows: int, seconds: float, device: str) -> dict[str, Any]:
    from throughput import run

    found = run(load, policy="vllm", seconds=seconds, device=device, rows=rows)
    passes = found["passes"]
    took_s = float((passes["duration_ps"] + passes["gap_ps"]).sum()) / 1e12
    tokens = int(passes["samples"].sum())
    if found["whole"]:
        tokens = int(lengths(load, rows)[1].sum())  # without the passes behind the ends
    return {"tokens": tokens, "seconds": took_s, "whole": found["whole"]}


def by_transformers(load: Load, rows: int, seconds: float, device: str) -> dict[str, Any]:
    """Its manager, as `generate_batch` drives it, with tokens told as they come."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    shape = dict(MODELS[load.model])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval()
    prompts, outputs = prompts_of(load, rows)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max(outputs), eos_token_id=-1, pad_token_id=0
    )
    options = _hints(prompts, outputs)
    if device == "cpu":  # left to itself it takes nearly all memory of the machine
        sizes = transformers.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=256)
        options["continuous_batching_config"] = sizes
    manager = model.init_continuous_batching(generation_config=greedy, **options)
    told = {"version": transformers.__version__}
    if hasattr(manager, "warmup"):  # graphs are captured before, as `generate_batch` does
        manager.warmup()
    manager.start()
    try:
        # One request first: what is made at the first pass belongs to warming up.
        manager.add_request(prompts[0][:16], max_new_tokens=2)
        while not (result := _next(manager)).is_finished():
            pass
        counts: dict[str, int] = {}
        open_rows = rows
        begin = last = time.perf_counter()
        for ids, count in zip(prompts, outputs, strict=True):
            manager.add_request(ids, max_new_tokens=count, streaming=True)
        while open_rows and time.perf_counter() - begin < seconds:
            result = _next(manager)
            counts[result.request_id] = len(result.generated_tokens)
            last = time.perf_counter()
            open_rows -= result.is_finished()
        attention = str(getattr(model.config, "_attn_implementation", "unknown"))
        return told | {
            "tokens": sum(counts.values()),
            "seconds": last - begin,
            "whole": not open_rows,
            "attention": attention,
        }
    finally:
        manager.stop(block=False)


def _hints(prompts: Sequence[Sequence[int]], outputs: Sequence[int]) -> dict[str, Any]:
    """What `generate_batch` says of a load, where this version takes it."""
    try:
        from transformers.generation.continuous_batching.utils import WorkloadHints
    except ImportError:
        return {}
    hints = WorkloadHints(
        max_prompt_length=max(map(len, prompts)),
        max_generated_length=max(outputs),
        num_requests=len(prompts),
    )
    return {"workload_hints": hints}


def _next(manager: Any) -> Any:
    while True:
        result = manager.get_result(timeout=1.0)
        if result is not None:
            if result.error:
                raise RuntimeError(str(result.error))
            return result
        if not manager.is_running():
            raise RuntimeError("its manager has stopped")


def measured(system: str, arguments: Sequence[str], limit_s: float) -> dict[str, Any]:
    """What a system says in a process of its own; an `error` where it says nothing in time."""
    command = [sys.executable, __file__, "--system", system, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"error": f"said nothing within {limit_s:.0f} s"}
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return {"error": " ".join(errors.split())[-400:]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cell", choices=sorted(CELLS), default=CELL)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a system may take")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--system", choices=SYSTEMS, help="only this one, in this process")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.system is not None:
        way = by_batchgen if given.system == "batchgen" else by_transformers
        found = way(CELLS[given.cell], given.rows, given.seconds, given.device)
        print(json.dumps(found), flush=True)
        os._exit(0)  # threads of a manager that was cut do not hold the process
    arguments = ["--cell", given.cell, "--rows", str(given.rows), "--device", given.device]
    arguments += ["--seconds", str(given.seconds)]
    told: dict[str, Any] = {"load": given.cell, "rows": given.rows, "cut_s": given.seconds}
    for system in SYSTEMS:
        told[system] = measured(system, arguments, given.seconds + LOADING_S)
        if "seconds" in told[system]:
            told[system]["tokens_per_s"] = told[system]["tokens"] / told[system]["seconds"]
    rates = [told[system].get("tokens_per_s") for system in SYSTEMS]
    if all(rates):
        told["times"] = rates[0] / rates[1]
        told["target"] = TARGET
        told["summary"] = (
            f"{rates[0]:,.0f} output tokens/s, transformers {rates[1]:,.0f}: "
            f"{told['times']:.1f} times as fast"
        )
    text = json.dumps(told, indent=1)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(rates) else 1


if __name__ == "__main__":
    sys.exit(main())
