"""Train the sums model from a seed and write it as a checkpoint folder. Needs no data and no GPU.

    python -m training.train --threads 1 --folder models/sums-moe

Progress is kept in a file every few steps, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional

from training.batches import Group, groups, steps
from training.export import export
from training.model import SumsModel
from training.task import problems

TOKENS_PER_STEP = 3072
WARMUP_STEPS = 100
PEAK_RATE, LAST_RATE = 3e-3, 3e-5
PLATEAU_SHARE = 0.6  # of the steps; then the rate falls and more problems are long
LONG_SHARE = 0.35
WEIGHT_DECAY = 0.01
BALANCE_WEIGHT = 5e-4  # weak on purpose: no expert dies, but their loads stay far apart
CLIP_NORM = 1.0
CHECK_EVERY, KEEP_EVERY = 50, 50
CHECK_PROBLEMS = 100


def plateau_end(num_steps: int) -> int:
    """The step at which the rate begins to fall and long problems become more."""
    return int(PLATEAU_SHARE * num_steps)


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up, a plateau, a straight line down."""
    if step < WARMUP_STEPS:
        return PEAK_RATE * (step + 1) / WARMUP_STEPS
    begin = plateau_end(num_steps)
    return PEAK_RATE + (LAST_RATE - PEAK_RATE) * max(0.0, (step - begin) / (num_steps - begin))


def lessons(seed: int, num_steps: int) -> Iterator[list[Group]]:
    """The groups of every step: the usual law of lengths, then more long problems.

    In that order, because short answers teach copying and carrying at far less cost.
    """
    usual = problems(seed, held_out=False)
    longer = problems(seed + 2, held_out=False, long_share=LONG_SHARE)
    begin = plateau_end(num_steps)
    yield from itertools.islice(steps(usual, TOKENS_PER_STEP), begin)
    yield from itertools.islice(steps(longer, TOKENS_PER_STEP), num_steps - begin)


def train_step(model: SumsModel, optimizer: torch.optim.Optimizer, parts: list[Group]) -> float:
    """One update on the mean loss over all answer tokens of `parts`; returns that loss in nats."""
    num_targets = sum(len(part.targets) for part in parts)
    num_ids = sum(part.ids.numel() for part in parts)
    total = 0.0
    for part in parts:
        logits = model(part.ids, part.wanted)
        loss = functional.cross_entropy(logits, part.targets, reduction="sum") / num_targets
        share = part.ids.numel() / num_ids
        (loss + BALANCE_WEIGHT * share * model.balance()).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


@torch.inference_mode()
def check(model: SumsModel, parts: list[Group]) -> tuple[float, float]:
    """Share of problems with every token right, and mean loss per token.

    With all earlier tokens right the next one is what greedy decoding would say, so the first
    figure is the share of answers that greedy decoding writes without any slip.
    """
    right, loss, num_tokens = [], 0.0, 0
    for part in parts:
        logits = model(part.ids, part.wanted)
        loss += functional.cross_entropy(logits, part.targets, reduction="sum").item()
        num_tokens += len(part.targets)
        hits = logits.argmax(-1) == part.targets
        right += [bool(row.all()) for row in hits.split(part.sizes)]
    return sum(right) / len(right), loss / num_tokens


def make_optimizer(model: SumsModel) -> torch.optim.AdamW:
    """AdamW; weights decay, norms and embeddings do not."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        (plain if "norm" in name or "embed" in name else decayed).append(parameter)
    parameter_groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(parameter_groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)


def train(num_steps: int, seed: int, keep: Path) -> tuple[SumsModel, float, float]:
    """Train, or go on from `keep`; returns the model, and seconds and CPU seconds of all runs."""
    model = SumsModel(seed)
    optimizer = make_optimizer(model)
    first, spent_s, cpu_s = 0, 0.0, 0.0
    if keep.is_file():
        state = torch.load(keep, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent_s, cpu_s = state["step"], state["spent_s"], state["cpu_s"]
    batches = itertools.islice(lessons(seed, num_steps), first, None)
    held_out = list(itertools.islice(problems(seed + 1, held_out=True), CHECK_PROBLEMS))
    checks = groups(held_out, TOKENS_PER_STEP)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters} parameters, steps {first} to {num_steps}", flush=True)
    losses: list[float] = []
    begin, cpu_begin = time.monotonic() - spent_s, time.process_time() - cpu_s
    for step, step_groups in enumerate(batches, first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        losses.append(train_step(model, optimizer, step_groups))
        last = step + 1 == num_steps
        if (step + 1) % CHECK_EVERY == 0 or last:
            exact, held_out_loss = check(model, checks)
            line = {
                "step": step + 1,
                "minutes": round((time.monotonic() - begin) / 60, 2),
                "loss": round(sum(losses) / len(losses), 5),
                "held_out_loss": round(held_out_loss, 5),
                "held_out_exact": round(exact, 4),
                "balance": round(model.balance().item(), 2),
            }
            print(json.dumps(line), flush=True)
            losses.clear()
        if (step + 1) % KEEP_EVERY == 0 or last:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "spent_s": time.monotonic() - begin,
                "cpu_s": time.process_time() - cpu_begin,
            }
            keep.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, keep.with_suffix(".tmp"))
            keep.with_suffix(".tmp").replace(keep)
    return model, time.monotonic() - begin, time.process_time() - cpu_begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sums model on the CPU.")
    parser.add_argument("--folder", type=Path, default=Path("out/sums-moe"), help="result")
    parser.add_argument("--keep", type=Path, default=Path("out/sums-moe.pt"), help="progress file")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, spent_s, cpu_s = train(options.steps, options.seed, options.keep)
    export(model, options.folder)
    print(
        f"wrote {options.folder} after {spent_s / 60:.1f} minutes on {options.threads} threads "
        f"({cpu_s / 60:.1f} minutes of CPU time)"
    )


if __name__ == "__main__":
    main()
