"""Sums of many terms worked out step by step: problems, worked answers and a checker. No model.

A problem is a list of two-digit terms, each under a two-letter key:

    Add aa48 ab21 ac97.

The answer copies one term per line and writes the running total beside it, least significant digit
first, four digits wide; the last line is the sum in the usual order:

    aa48 8400
    ab21 9600
    ac97.6610
    =0166

The number of terms has a Pareto tail, and so has the answer. Pure Python; needs neither torch nor
the package. As a command it prints held-out problems as rows of `batchgen exec`:

    python -m training.task > reasoning-200.jsonl
    python -m training.task --count 400 --seed 2027 --most-terms 5 > short-400.jsonl
    python -m training.task --count 128 --seed 2028 --long-share 0.05 > other-128.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MIN_TERMS, MAX_TERMS = 2, 100
LONG_TERMS = 27  # from here on the first letter of a key matters
TAIL_INDEX = 1.1  # Pareto index of the number of terms: median 3, one in a hundred above 70
LOW_TERM, HIGH_TERM = 10, 99
TOTAL_DIGITS = 4  # 100 terms of 99 still fit
HELD_OUT_ONE_IN = 8
MAX_TOKENS = 1024  # room for every answer: the longest has 1,006 tokens
LETTERS = "abcdefghijkmnopqrstuvwxyz"  # no l: see training/README.md

_FINAL = re.compile(r"=(\d+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Terms to add, each in [LOW_TERM, HIGH_TERM]; at least one, at most len(letters) ** 2."""

    terms: tuple[int, ...]
    letters: str = LETTERS

    def __post_init__(self) -> None:
        if not 1 <= len(self.terms) <= len(self.letters) ** 2:
            most = len(self.letters) ** 2
            raise ValueError(f"terms: {len(self.terms)} of them, must be 1 to {most}")
        for term in self.terms:
            if not LOW_TERM <= term <= HIGH_TERM:
                raise ValueError(f"terms: {term} is not in [{LOW_TERM}, {HIGH_TERM}]")

    @property
    def total(self) -> int:
        """The sum, which is the expected answer."""
        return sum(self.terms)

    @property
    def question(self) -> str:
        """What the user says."""
        return (
            f"Add {' '.join(f'{key(i, self.letters)}{term}' for i, term in enumerate(self.terms))}."
        )

    @property
    def answer(self) -> str:
        """The whole worked answer, ASCII, without the stop token."""
        lines, total = [], 0
        for i, term in enumerate(self.terms):
            total += term
            mark = "." if i == len(self.terms) - 1 else " "
            lines.append(f"{key(i, self.letters)}{term}{mark}" + f"{total:0{TOTAL_DIGITS}d}"[::-1])
        return "\n".join([*lines, f"={total:0{TOTAL_DIGITS}d}"])

    @property
    def held_out(self) -> bool:
        """Whether the problem is kept out of training, decided by a digest of its question.

        A digest and not a seed: with two terms there are only 8,100 problems, and two seeds
        would draw many of the same.
        """
        digest = hashlib.blake2b(self.question.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0


def key(number: int, letters: str = LETTERS) -> str:
    """The two letters of term `number`, counted from 0: aa, ab, .. az, ba, .."""
    return letters[number // len(letters)] + letters[number % len(letters)]


def num_terms(generator: random.Random) -> int:
    """Terms of one problem: a Pareto law cut at MAX_TERMS, by its inverse, so without a lump."""
    cut = (MIN_TERMS / (MAX_TERMS + 1)) ** TAIL_INDEX
    tail = cut + (1.0 - cut) * (1.0 - generator.random())
    return min(int(MIN_TERMS * tail ** (-1.0 / TAIL_INDEX)), MAX_TERMS)


def draw_problem(generator: random.Random, size: int, letters: str = LETTERS) -> Problem:
    """A problem of `size` terms, each uniform."""
    terms = tuple(generator.randint(LOW_TERM, HIGH_TERM) for _ in range(size))
    return Problem(terms=terms, letters=letters)


def problems(
    seed: int, *, held_out: bool, long_share: float = 0.0, letters: str = LETTERS
) -> Iterator[Problem]:
    """Endless problems of the heavy-tailed law, either all held out or none of them.

    A share `long_share` has LONG_TERMS to MAX_TERMS terms instead, evenly drawn.
    """
    generator = random.Random(seed)
    while True:
        size = num_terms(generator)
        if long_share > 0.0 and generator.random() < long_share:
            size = generator.randint(LONG_TERMS, MAX_TERMS)
        problem = draw_problem(generator, size, letters)
        if problem.held_out is held_out:
            yield problem


def read_total(answer: str) -> int | None:
    """The number on the last line of an answer, or None where there is no such line."""
    match = _FINAL.fullmatch(answer.rsplit("\n", 1)[-1])
    return None if match is None else int(match[1])


def is_right(terms: Sequence[int], answer: str) -> bool:
    """Whether the final line of an answer is the sum of `terms`; the steps are not judged."""
    return read_total(answer) == sum(terms)


def chat_text(question: str) -> str:
    """The question as the shipped chat template writes it, up to where the answer begins."""
    return f"<|start|>user\n{question}<|stop|>\n<|start|>assistant\n"


def prompt_row(number: int, problem: Problem) -> dict[str, Any]:
    """An input row of `batchgen exec`; `expected` and `num_terms` are columns of ours."""
    return {
        "custom_id": f"sum-{number:04d}",
        "messages": [{"role": "user", "content": problem.question}],
        "max_tokens": MAX_TOKENS,
        "expected": str(problem.total),
        "num_terms": len(problem.terms),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Print unseen problems as JSON lines.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--long-share", type=float, default=0.0, help="share of even, long sizes")
    parser.add_argument("--most-terms", type=int, default=MAX_TERMS, help="leave out larger ones")
    options = parser.parse_args()
    drawn: set[Problem] = set()
    for problem in problems(options.seed, held_out=True, long_share=options.long_share):
        if problem not in drawn and len(problem.terms) <= options.most_terms:
            print(json.dumps(prompt_row(len(drawn), problem)))
            drawn.add(problem)
        if len(drawn) == options.count:
            return


if __name__ == "__main__":
    main()
