"""Makes rows of several rounds: draws the stages after the first. Reads no file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchgen.errors import UserError
from batchgen.trace.lengths import Lengths
from batchgen.trace.stages import MAX_STAGES, MAX_WAIT_PS, Stages

PS_PER_S = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """`count` rounds of a row, its first answer among them; the tokens of a follow-up and of its
    answer; and the mean of the exponential time before a follow-up, in seconds (0: none)."""

    count: Lengths
    follow_up: Lengths
    output: Lengths
    wait_mean_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.wait_mean_s <= MAX_WAIT_PS / PS_PER_S / 100:
            raise UserError(
                f"a mean wait of {self.wait_mean_s:g} s between rounds",
                remedy=f"give 0 to {MAX_WAIT_PS / PS_PER_S / 100:g}",
            )


def draw_stages(rng: np.random.Generator, rounds: Rounds, num_rows: int) -> Stages | None:
    """The stages of so many rows; None if every row has one round. Each column has a random
    stream of its own."""
    count_rng, follow_up_rng, output_rng, wait_rng = rng.spawn(4)
    counts = rounds.count.sample(count_rng, num_rows).astype(np.int64) - 1
    if counts.max(initial=0) > MAX_STAGES:
        raise UserError(
            f"a row of {counts.max() + 1} rounds", remedy=f"give at most {MAX_STAGES + 1}"
        )
    total = int(counts.sum())
    if not total:
        return None
    waits = np.minimum(wait_rng.exponential(rounds.wait_mean_s, total) * PS_PER_S, MAX_WAIT_PS)
    return Stages(
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        prompt_tokens=rounds.follow_up.sample(follow_up_rng, total),
        output_tokens=rounds.output.sample(output_rng, total),
        wait_ps=np.rint(waits).astype(np.int64),
    )
