"""Time the choice of 128 next tokens over a vocabulary of 151,936 on this CPU, kind by kind.

    python benchmarks/sampling.py [--threads N] [--rows N] [--vocab N] [--hidden N] [--output PATH]

Prints one JSON object: for each kind of row the median, quartiles and least of the time, and
`of_head`, the median over that of the product of the LM head, which makes the logits (bfloat16,
`--hidden` inputs, in turns with the rest). A decode step does that product and many others, so the
share of a step is smaller. Logits fall with the logarithm of their rank, nearly as those of
language models do; "flat" ones are normal, which is the worst case: nothing but a look at all of
them can tell which tokens hold the probability. Other programs stretch the times, those of products
more than of reading memory: `load_average` says how busy it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np

# Names of `Sampling` and their values; one row of the result each.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "top_p": {"temperature": 0.7, "top_p": 0.95},
    "top_k": {"temperature": 0.7, "top_k": 50},
    "top_k_top_p": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "min_p": {"temperature": 1.0, "min_p": 0.05},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "logprobs": {"logprobs": 5},
}
TARGET_OF_STEP = 0.05
KNOWN_TOKENS = 1000  # of a row; penalties count them once


def measure(rows: int, vocab: int, hidden: int, threads: int, repeats: int) -> dict[str, Any]:
    """Times in seconds, all kinds and the head in turns."""
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    steep = torch.linspace(1.2, 2.6, rows)
    ranks = torch.log(torch.arange(1, vocab + 1, dtype=torch.float32))
    peaked = torch.stack([-a * ranks[torch.randperm(vocab, generator=generator)] for a in steep])
    peaked += torch.randn(rows, vocab, generator=generator) * 0.3
    flat = torch.randn(rows, vocab, generator=generator) * 2.5
    head = torch.randn(vocab, hidden, generator=generator).bfloat16()
    x = torch.randn(rows, hidden, generator=generator).bfloat16()
    calls: dict[str, Callable[[], object]] = {
        "head": lambda: torch.nn.functional.linear(x, head).float(),
        **{name: _choice(peaked, options) for name, options in KINDS.items()},
        "top_p, flat": _choice(flat, KINDS["top_p"]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if number:  # the first is for what is new
                times[name].append(time.perf_counter() - begin)
    base = statistics.median(times["head"])
    return {name: _summary(values, base) for name, values in times.items()}


def _choice(logits: Any, options: dict[str, Any]) -> Callable[[], object]:
    """What a pass does with its logits, on rows of one kind that know many tokens already."""
    from batchgen.exec.pass_sampler import next_tokens
    from batchgen.exec.rows import RowInput, Rows
    from batchgen.job.sampling import Sampling

    count, vocab = logits.shape
    known = np.random.default_rng(0).integers(0, vocab, (count, KNOWN_TOKENS))
    columns = Rows(vocab)
    for row in range(count):
        sampling = Sampling(seed=row, **options)
        prompt, never = known[row], frozenset[int]()
        given = RowInput(prompt_ids=prompt, max_output=1 << 30, stop_ids=never, sampling=sampling)
        columns.add(row, given)
    return lambda: next_tokens(columns, range(count), logits)


def _summary(values: list[float], base: float) -> dict[str, float | list[float]]:
    quartiles = statistics.quantiles(values, n=4)
    median = statistics.median(values)
    return {
        "median_s": median,
        "quartiles_s": [quartiles[0], quartiles[2]],
        "least_s": min(values),
        "of_head": median / base,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    if min(options.rows, options.vocab, options.hidden, options.threads) < 1 or options.repeats < 2:
        parser.error("rows, vocab, hidden and threads must be at least 1, repeats at least 2")
    from batchgen.cli.torch_threads import calm_threads

    calm_threads()  # as `batchgen exec` does, before torch is loaded
    before = os.getloadavg()[0]
    sizes = options.rows, options.vocab, options.hidden, options.threads, options.repeats
    result = {
        "benchmark": "sampling",
        "machine": machine.describe(),
        "commit": machine.commit(),
        "load_average": [before],
        "rows": options.rows,
        "vocab": options.vocab,
        "hidden": options.hidden,
        "threads": options.threads,
        "repeats": options.repeats,
        "target": {"of_step": TARGET_OF_STEP},
        "kinds": measure(*sizes),
    }
    result["load_average"].append(os.getloadavg()[0])
    machine.publish(result, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
