"""Token batches of worked problems, short beside short. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from training.task import Problem

PAD, START, STOP = 256, 259, 260  # special tokens of the byte-level tokenizer
MAX_WASTE = 1.4  # a group may hold this many times the tokens of its problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Problems of similar length, padded. `wanted` marks tokens whose next token is answer."""

    ids: torch.Tensor  # [B, S]
    wanted: torch.Tensor  # [B, S], bool
    targets: torch.Tensor  # [number of wanted tokens], row by row
    sizes: list[int]  # wanted tokens of each row


def encode(problem: Problem) -> tuple[list[int], int]:
    """All tokens of a problem with its answer and stop token, and how many of them are prompt."""
    prompt = [START, *b"user\n", *problem.question.encode(), STOP, *b"\n"]
    prompt += [START, *b"assistant\n"]
    return [*prompt, *problem.answer.encode(), STOP], len(prompt)


def groups(problems: list[Problem], max_tokens: int) -> list[Group]:
    """Cut problems, sorted by length, into groups of at most `max_tokens` padded tokens."""
    rows = sorted((encode(problem) for problem in problems), key=lambda row: len(row[0]))
    cut: list[list[tuple[list[int], int]]] = [[]]
    used = 0
    for row in rows:
        padded = (len(cut[-1]) + 1) * len(row[0])
        if cut[-1] and (padded > max_tokens or padded > MAX_WASTE * (used + len(row[0]))):
            cut.append([])
            used = 0
        cut[-1].append(row)
        used += len(row[0])
    return [_group(part) for part in cut]


def _group(rows: list[tuple[list[int], int]]) -> Group:
    width = max(len(ids) for ids, _ in rows) - 1  # the last token predicts nothing
    ids = torch.full((len(rows), width), PAD)
    wanted = torch.zeros(len(rows), width, dtype=torch.bool)
    targets: list[int] = []
    for number, (row, prompt_tokens) in enumerate(rows):
        ids[number, : len(row) - 1] = torch.tensor(row[:-1])
        wanted[number, prompt_tokens - 1 : len(row) - 1] = True
        targets += row[prompt_tokens:]
    sizes = [len(row) - prompt_tokens for row, prompt_tokens in rows]
    return Group(ids=ids, wanted=wanted, targets=torch.tensor(targets), sizes=sizes)


def steps(source: Iterator[Problem], tokens_per_step: int) -> Iterator[list[Group]]:
    """Endless lists of groups of about `tokens_per_step` tokens together.

    Problems come in the order of `source`, so every step sees the heavy-tailed law of lengths.
    """
    while True:
        taken: list[Problem] = []
        num_tokens = 0
        while num_tokens < tokens_per_step:
            taken.append(next(source))
            num_tokens += len(encode(taken[-1])[0])
        yield groups(taken, tokens_per_step)
