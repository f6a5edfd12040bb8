"""Measure a shipped sums model on held-out problems: slips by size, load of the experts.

    python -m training.evaluate models/sums-moe

Teacher-forced: where every token is the most probable one after the right past, greedy decoding
writes the same answer. It counts a slip in a step as wrong even if the final sum comes out right.
`batchgen exec` with `examples/check_answers.py` is the measurement of the whole chain.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

import torch

from training.batches import groups
from training.export import restore
from training.model import CONFIG, SumsModel
from training.task import MAX_TERMS, Problem, draw_problem, problems

TOKENS_PER_PASS = 8192


@torch.inference_mode()
def count_right(model: SumsModel, chosen: list[Problem], loads: torch.Tensor) -> int:
    """Answers without a slip; adds choices of experts to `loads` [layers, experts]."""
    right = 0
    for part in groups(chosen, TOKENS_PER_PASS):
        hits = model(part.ids, part.wanted).argmax(-1) == part.targets
        right += sum(bool(row.all()) for row in hits.split(part.sizes))
        loads += torch.tensor([layer.mlp.counts for layer in model.model["layers"]])
    return right


def unseen(generator: random.Random, size: int, count: int) -> list[Problem]:
    """Held-out problems of one size."""
    drawn: list[Problem] = []
    while len(drawn) < count:
        problem = draw_problem(generator, size)
        if problem.held_out:
            drawn.append(problem)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a sums model on unseen problems.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="problems of the usual law")
    parser.add_argument("--per-size", type=int, default=30, help="problems of each fixed size")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = restore(options.folder)
    loads = torch.zeros(CONFIG["num_hidden_layers"], CONFIG["num_experts"], dtype=torch.int64)
    usual = list(itertools.islice(problems(options.seed, held_out=True), options.count))
    right = count_right(model, usual, loads)
    print(f"without a slip: {right} of {len(usual)} ({right / len(usual):.2%})")
    lengths = sorted(len(problem.answer) + 1 for problem in usual)
    p50, p95 = lengths[len(usual) // 2], lengths[len(usual) * 95 // 100]
    print(f"answer tokens: p50 {p50}, p95 {p95}, max {lengths[-1]}")
    for layer, counts in enumerate(loads):
        shares = sorted((counts / counts.sum()).tolist(), reverse=True)
        print(f"layer {layer} expert shares in %: {' '.join(f'{100 * s:.1f}' for s in shares)}")
    generator = random.Random(options.seed)
    for size in (2, 5, 10, 20, 35, 50, 75, MAX_TERMS):
        fixed = unseen(generator, size, options.per_size)
        right = count_right(model, fixed, torch.zeros_like(loads))
        print(f"{size:>3} terms: {right} of {len(fixed)} without a slip")


if __name__ == "__main__":
    main()
