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
from dataclasses import dataclass
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
PLATEAU_SHARE = 0.7
LONG_PEAK_RATE, LONG_SHARE = 1.5e-3, 0.25  # of the steps with more long problems
# The model that the first two parts give mistakes the keys bl, cl and dl for others, and hardly any
# other key. The last part counts without the letter l, as all later questions do.
ALL_LETTERS = "abcdefghijklmnopqrstuvwxyz"
LAST_PART_RATE = 1e-3
WEIGHT_DECAY = 0.01
BALANCE_WEIGHT = 2e-3  # weak on purpose: no expert dies, but their loads stay far apart
CLIP_NORM = 1.0
CHECK_EVERY, KEEP_EVERY = 50, 50
CHECK_PROBLEMS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Steps of the three parts of a run."""

    usual: int
    longer: int
    last: int

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.usual + self.longer + self.last


def learning_rate(step: int, parts: Parts) -> float:
    """Linear warm-up, a plateau, a straight line down; then a lower line down in each later part.

    The plateau does not depend on `parts`: a run that is stopped there and started again with
    another number of steps is the run that it would have been from the beginning.
    """
    num_steps, longer_end = parts.usual, parts.usual + parts.longer
    if step < WARMUP_STEPS:
        return PEAK_RATE * (step + 1) / WARMUP_STEPS
    if step >= longer_end:
        return LAST_PART_RATE + (LAST_RATE - LAST_PART_RATE) * (step - longer_end) / parts.last
    if step >= num_steps:
        done = (step - num_steps) / parts.longer
        return LONG_PEAK_RATE + (LAST_RATE - LONG_PEAK_RATE) * done
    falling = (step - PLATEAU_SHARE * num_steps) / ((1.0 - PLATEAU_SHARE) * num_steps)
    return PEAK_RATE + (LAST_RATE - PEAK_RATE) * max(0.0, falling)


def lessons(seed: int, parts: Parts) -> Iterator[list[Group]]:
    """The groups of every step: the usual law of lengths, more long problems, the final letters."""
    usual = problems(seed, held_out=False, letters=ALL_LETTERS)
    longer = problems(seed + 2, held_out=False, long_share=LONG_SHARE, letters=ALL_LETTERS)
    last = problems(seed + 3, held_out=False, long_share=LONG_SHARE)
    yield from itertools.islice(steps(usual, TOKENS_PER_STEP), parts.usual)
    yield from itertools.islice(steps(longer, TOKENS_PER_STEP), parts.longer)
    yield from itertools.islice(steps(last, TOKENS_PER_STEP), parts.last)


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


def train(parts: Parts, seed: int, keep: Path) -> tuple[SumsModel, float, float]:
    """Train, or go on from `keep`; returns the model, and seconds and CPU seconds of all runs."""
    model = SumsModel(seed)
    optimizer = make_optimizer(model)
    first, spent_s, cpu_s = 0, 0.0, 0.0
    if keep.is_file():
        state = torch.load(keep, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent_s, cpu_s = state["step"], state["spent_s"], state["cpu_s"]
    batches = itertools.islice(lessons(seed, parts), first, None)
    held_out = list(itertools.islice(problems(seed + 1, held_out=True), CHECK_PROBLEMS))
    checks = groups(held_out, TOKENS_PER_STEP)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters} parameters, steps {first} to {parts.total}", flush=True)
    losses: list[float] = []
    begin, cpu_begin = time.monotonic() - spent_s, time.process_time() - cpu_s
    for step, step_groups in enumerate(batches, first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, parts)
        losses.append(train_step(model, optimizer, step_groups))
        last = step + 1 == parts.total
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
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--long-steps", type=int, default=400)
    parser.add_argument("--last-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = Parts(usual=options.steps, longer=options.long_steps, last=options.last_steps)
    model, spent_s, cpu_s = train(parts, options.seed, options.keep)
    export(model, options.folder)
    print(
        f"wrote {options.folder} after {spent_s / 60:.1f} minutes on {options.threads} threads "
        f"({cpu_s / 60:.1f} minutes of CPU time)"
    )


if __name__ == "__main__":
    main()
