"""Time a decode step of 128 rows on a 46 M Qwen3-MoE on this CPU. Measures no policy and no GPU.

    python benchmarks/decode_step.py [--threads N] [--rows N] [--context N] [--output PATH]

Prints one JSON object: machine, load, median and quartiles of the step, and where its time went.
`outside_fraction` is what a pass spends outside `Transformer.forward`: laying out the batch,
sampling, bookkeeping. `speedup` is over the same steps with attention and experts in torch, in this
very run. Other programs stretch the times: `load_average` says how busy it was, and
`cpu_s`, the processor time of all threads, is stretched less (not waited for, but shared caches).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import numpy as np
from checkpoints import write_random

SHAPE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 3584,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}
TARGET_S = 0.060
TARGET_OUTSIDE = 0.10


class Stopwatch:
    """Adds up the time spent in functions of a module, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def over(self, owner: Any, name: str, label: str) -> Iterator[None]:
        """Time every call of `owner.name` while the block runs."""
        real: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return real(*arguments, **named)
            finally:
                self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - begin

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, real)


def measure(rows: int, context: int, threads: int, steps: int, dtype: str, exact: bool) -> Any:
    """Run `steps` decode passes of `rows` rows whose contexts average about `context` tokens."""
    from batchgen.exec import layers
    from batchgen.exec.arithmetic import Arithmetic
    from batchgen.exec.layers import GroupedAttention
    from batchgen.exec.mlp import SparseMlp
    from batchgen.exec.worker import Worker

    with tempfile.TemporaryDirectory() as folder:
        parameters = write_random(SHAPE, Path(folder))
        page, warm = 64, 3
        lengths = np.random.default_rng(0).integers(context // 2, context * 3 // 2 + 1, rows)
        pages = int(sum(-(-(int(n) + 2 * (steps + warm) + 2) // page) for n in lengths))
        worker = Worker(
            Path(folder),
            page_tokens=page,
            hbm_pages=pages,
            host_pages=0,
            dtype=dtype,
            threads=threads,
            exact=exact,
        )
    for row, length in enumerate(lengths):
        ids = np.random.default_rng(row).integers(1, SHAPE["vocab_size"], int(length)).tolist()
        worker.add_row(row, ids, max_output=1 << 30, stop_ids=frozenset())
        worker.run_pass([], [(row, 0, int(length), True)])
    numbers = range(rows)
    for _ in range(warm):
        worker.run_pass(numbers, [])
    inside = Stopwatch()
    durations, forwards, cpu = [], [], []
    with inside.over(worker.model, "forward", "forward"):
        for _ in range(steps):
            before, cpu_before = inside.seconds.get("forward", 0.0), time.process_time()
            durations.append(worker.run_pass(numbers, []).duration_s)
            forwards.append(inside.seconds["forward"] - before)
            cpu.append(time.process_time() - cpu_before)
    parts = Stopwatch()
    with (
        parts.over(worker.model, "forward", "forward"),
        parts.over(type(worker.model.backend), "run", "attention"),
        parts.over(SparseMlp, "__call__", "experts"),
        parts.over(Arithmetic, "linear", "linear"),
        parts.over(GroupedAttention, "_place", "norm_rotary_kv_write"),
        parts.over(layers, "add_rms_norm", "add_and_norm"),
    ):
        for _ in range(steps):
            worker.run_pass(numbers, [])
    outside = [d - f for d, f in zip(durations, forwards, strict=True)]
    quartiles = statistics.quantiles(durations, n=4)
    median = statistics.median(durations)
    share = statistics.median(o / d for o, d in zip(outside, durations, strict=True))
    return {
        "kernels": worker.kernels,
        "parameters": parameters,
        "rows": rows,
        "mean_context": round(float(lengths.mean()) + warm + steps / 2, 1),
        "threads": threads,
        "dtype": dtype,
        "exact": exact,
        "steps": steps,
        "step_s": {
            "median": median,
            "quartiles": [quartiles[0], quartiles[2]],
            "least": min(durations),
        },
        "cpu_s": statistics.median(cpu),
        "outside_s": statistics.median(outside),
        "outside_fraction": share,
        "inside_s": {name: total / steps for name, total in sorted(parts.seconds.items())},
        "meets_target": median <= TARGET_S and share < TARGET_OUTSIDE,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--context", type=int, default=128, help="mean tokens of a row")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    if min(options.rows, options.context, options.threads) < 1 or options.steps < 2:
        parser.error("rows, context and threads must be at least 1, steps at least 2")
    from batchgen.cli.torch_threads import calm_threads

    calm_threads()  # as `batchgen exec` does, before torch is loaded
    before = os.getloadavg()[0]
    settings = (
        options.rows,
        options.context,
        options.threads,
        options.steps,
        options.dtype,
        options.exact,
    )
    result = {
        "benchmark": "decode_step",
        "machine": machine.describe(),
        "commit": machine.commit(),
        "load_average": [before],
        "target": {"step_s": TARGET_S, "outside_fraction": TARGET_OUTSIDE},
        **measure(*settings),
    }
    result["load_average"].append(os.getloadavg()[0])
    if result["kernels"] == "compiled":
        os.environ["BATCHGEN_COMPILED"] = "0"
        reference = measure(*settings)
        result["in_torch"] = reference
        result["speedup"] = reference["step_s"]["median"] / result["step_s"]["median"]
    machine.publish(result, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
