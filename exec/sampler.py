"""From logits to the next token: greedy, or seeded nucleus sampling. Keeps no state.

Vectorised over the rows of a pass; the randomness of a row is a hash of its seed and of how many
tokens it has produced, so that no batch, order or restart can change it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch

from batchgen.job.sampling import Sampling


def greedy(logits_RV: torch.Tensor) -> torch.Tensor:
    """Highest logit of each row, ties to the lowest index; the vocabulary size marks a bad row.

    A row is bad when its maximum is not finite: then no choice means anything.
    """
    size = logits_RV.shape[-1]
    top_R, chosen_R = logits_RV.max(-1)
    # max leaves open which of equal maxima it names; only rows that have several are looked at.
    several_R = (logits_RV == top_R[:, None]).sum(-1) > 1
    if bool(several_R.any()):
        tied = logits_RV[several_R]
        index_V = torch.arange(size, device=logits_RV.device)
        first = torch.where(tied == tied.amax(-1, keepdim=True), index_V, size).amin(-1)
        chosen_R = chosen_R.masked_scatter(several_R, first)
    return torch.where(top_R.isfinite(), chosen_R, size)


def uniform(
    seeds: Sequence[int], counters: Sequence[int]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """One number in [0, 1) per (seed, counter): two rounds of the splitmix64 finaliser.

    Source of the constants: Steele, Lea and Flood, Fast splittable pseudorandom number generators,
    OOPSLA 2014, in the variant of Vigna's splitmix64.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.array([s % (1 << 64) for s in seeds], dtype=np.uint64))
        state = _mix(state ^ np.array(counters, dtype=np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(
    x: np.ndarray[tuple[int], np.dtype[np.uint64]],
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def nucleus(
    logits_RV: torch.Tensor, sampling: Sequence[Sampling], counters: Sequence[int]
) -> torch.Tensor:
    """Draw from the smallest set of top tokens whose probability reaches top_p, in float64."""
    # A subnormal temperature may be taken for 0 by the processor, and 0 / 0 is no number.
    temperature = torch.tensor(
        [max(s.temperature, sys.float_info.min) for s in sampling], dtype=torch.float64
    )[:, None]
    top_p = torch.tensor([s.top_p for s in sampling], dtype=torch.float64)[:, None]
    # Differences to the best logit are at most 0: a low temperature makes -inf of them, never inf.
    logits_RV = logits_RV.double()
    below_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
    probabilities = torch.softmax(below_RV / temperature, dim=-1)
    sorted_RV, order_RV = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    kept_RV = torch.where(before_RV < top_p, sorted_RV, 0.0)
    kept_RV[:, :1] = sorted_RV[:, :1]  # one is always left, even if top_p is subnormal
    cumulative_RV = kept_RV.cumsum(-1)
    draws = torch.from_numpy(uniform([s.seed for s in sampling], counters))[:, None]
    index = torch.searchsorted(cumulative_RV, draws * cumulative_RV[:, -1:], right=True)
    last_kept = (kept_RV > 0).sum(-1, keepdim=True) - 1
    return order_RV.gather(1, torch.minimum(index, last_kept)).squeeze(1)


def choose(
    logits_RV: torch.Tensor, sampling: Sequence[Sampling | None], counters: Sequence[int]
) -> list[int]:
    """Next token of each row; the vocabulary size marks a row whose logits are not finite."""
    chosen = greedy(logits_RV).cpu()
    size = logits_RV.shape[-1]
    drawn = [
        i for i, s in enumerate(sampling) if s is not None and not s.greedy and chosen[i] < size
    ]
    if drawn:
        settings = [s for s in (sampling[i] for i in drawn) if s is not None]
        index = torch.tensor(drawn)
        chosen[index] = nucleus(
            logits_RV[index.to(logits_RV.device)].cpu(), settings, [counters[i] for i in drawn]
        )
    tokens: list[int] = chosen.tolist()
    return tokens
