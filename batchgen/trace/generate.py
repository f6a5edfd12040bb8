"""Makes traces from length distributions, with a seed. Reads no file; distributions: lengths.py.

The benchmark load of this project is `lognormal(700, 0.8, 1000, 1.0, 100_000, 0)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batchgen.errors import UserError
from batchgen.trace.lengths import Lengths, Lognormal, OfNormal, choose_part
from batchgen.trace.rounds import Rounds, draw_stages
from batchgen.trace.table import MAX_ARRIVAL_PS, Trace, make_trace

DEFAULT_PREFIX_BLOCK_TOKENS = 64
PS_PER_S = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of request: its prompt and output lengths, and its weight among the kinds."""

    prompt: Lengths
    output: Lengths
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """What to make. `num_rows` counts rows, so it must be a multiple of `samples_per_prompt`.

    Samples of one prompt form a group: same prompt, prefix and arrival, outputs of their own; they
    share the full blocks of `prefix_block_tokens` (0 records no prefixes). `alike` is the part of
    the variance of their (log) outputs that they have in common: 0, independent; 1, all samples of
    a prompt are as long. `rate_per_s` gives
    Poisson arrivals of prompts; 0 means that all are there at the start. `expert_skew` is the
    power-law exponent of the experts' load, recorded for the backends. `rounds`: rows go on after
    their first answer.
    """

    num_rows: int
    seed: int = 0
    samples_per_prompt: int = 1
    alike: float = 0.0
    rate_per_s: float = 0.0
    expert_skew: float = 0.0
    prefix_block_tokens: int = DEFAULT_PREFIX_BLOCK_TOKENS
    rounds: Rounds | None = None

    def __post_init__(self) -> None:
        checks = (
            (1 <= self.num_rows <= 2**31 - 1, "the number of rows must be at least 1"),
            (self.seed >= 0, "the seed must not be negative"),
            (self.samples_per_prompt >= 1, "samples per prompt must be at least 1"),
            (0 <= self.alike <= 1, "what samples have in common must be a part, 0 to 1"),
            (0 <= self.rate_per_s < float("inf"), "the rate must not be negative"),
            (0 <= self.expert_skew < float("inf"), "the expert skew must not be negative"),
            (self.prefix_block_tokens >= 0, "the prefix block must not be negative"),
        )
        for good, message in checks:
            if not good:
                raise UserError(message, remedy="correct the option")
        if self.num_rows % self.samples_per_prompt:
            raise UserError(
                f"{self.num_rows} rows are no multiple of {self.samples_per_prompt} samples",
                remedy="give a multiple",
            )


def generate(parts: tuple[Part, ...], options: GenerateOptions, name: str = "generated") -> Trace:
    """A trace of `num_rows` rows drawn from the parts. Same arguments, same trace.

    Prompts, outputs, arrivals, rounds and the choice of parts have random streams of their own, so
    that changing one distribution leaves the others' values as they are.
    """
    if not parts or not all(0 < part.weight < float("inf") for part in parts):
        raise UserError("every part needs a positive weight", remedy="correct the weights")
    samples = options.samples_per_prompt
    num_prompts = options.num_rows // samples
    streams = np.random.default_rng(options.seed).spawn(5)
    choice, prompt_rng, output_rng, arrival_rng, rounds_rng = streams
    prompts = np.zeros(num_prompts, dtype=np.int32)
    outputs = np.zeros(options.num_rows, dtype=np.int32)
    which = np.zeros(num_prompts, dtype=np.int64)
    if len(parts) > 1:
        which = choose_part(choice, [part.weight for part in parts], num_prompts)
    row_part = np.repeat(which, samples)
    normal = _alike(output_rng, options) if options.alike else None
    for i, part in enumerate(parts):
        rows = np.flatnonzero(which == i)
        prompts[rows] = part.prompt.sample(prompt_rng, rows.size)
        rows = np.flatnonzero(row_part == i)
        outputs[rows] = (
            part.output.sample(output_rng, rows.size)
            if normal is None
            else _of_normal(part.output).of(normal[rows])
        )
    arrival = np.zeros(num_prompts, dtype=np.int64)
    if options.rate_per_s:
        arrival = _poisson_ps(arrival_rng, options.rate_per_s, num_prompts)
    columns: dict[str, Any] = {}
    if options.rounds is not None:
        columns["stages"] = draw_stages(rounds_rng, options.rounds, options.num_rows)
    if samples > 1:
        columns["group"] = np.repeat(np.arange(num_prompts, dtype=np.int32), samples)
        columns |= _shared_prefixes(prompts, samples, options.prefix_block_tokens)
    return make_trace(
        name=name,
        prompt_tokens=np.repeat(prompts, samples),
        output_tokens=outputs,
        arrival_ps=np.repeat(arrival, samples),
        expert_skew=options.expert_skew,
        meta={"source": "batchgen trace generate", "seed": options.seed},
        **columns,
    )


def _alike(rng: np.random.Generator, options: GenerateOptions) -> NDArray[np.float64]:
    """Standard normal values, one per row; samples of a prompt share a part of them."""
    samples, rows = options.samples_per_prompt, options.num_rows
    common = np.repeat(rng.standard_normal(rows // samples), samples)
    own = rng.standard_normal(rows)
    return math.sqrt(options.alike) * common + math.sqrt(1 - options.alike) * own


def _of_normal(output: Lengths) -> OfNormal:
    if not isinstance(output, OfNormal):
        raise UserError(
            f"samples that are alike: no outputs by {type(output).__name__.lower()}",
            remedy="give lognormal, quantiles or constant, and parts instead of a mixture",
        )
    return output


def lognormal(
    mean_in: float,
    sigma_in: float,
    mean_out: float,
    sigma_out: float,
    n: int,
    seed: int,
    max_in: int | None = None,
    max_out: int | None = None,
) -> Trace:
    """n rows with log-normal lengths, all present at the start. The means are those of the
    distributions, in tokens, before clipping to the maxima."""
    part = Part(
        prompt=Lognormal(mean=mean_in, sigma=sigma_in, max=max_in),
        output=Lognormal(mean=mean_out, sigma=sigma_out, max=max_out),
    )
    return generate((part,), GenerateOptions(num_rows=n, seed=seed), name="lognormal")


def expert_shares(num_experts: int, alpha: float) -> NDArray[np.float64]:
    """[num_experts] share of the tokens per expert, heaviest first, summing to 1.

    Power law: the expert of rank r (from 1) gets a share proportional to r ** -alpha; alpha = 0 is
    balanced. Which expert has which rank is for the placement to decide.
    """
    if num_experts < 1 or not 0 <= alpha < float("inf"):
        raise UserError(
            f"{num_experts} experts with skew {alpha:g}",
            remedy="give at least one expert and a skew from 0",
        )
    # Relative to the heaviest, which is 1: a steep skew may underflow at the light end only.
    weights = np.arange(1, num_experts + 1, dtype=np.float64) ** -alpha
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def _poisson_ps(rng: np.random.Generator, rate_per_s: float, n: int) -> NDArray[np.int64]:
    """Arrivals of a Poisson process, the first at 0."""
    with np.errstate(over="ignore", invalid="ignore"):  # a rate may be as small as numbers get
        seconds = np.cumsum(rng.exponential(1.0, n) / rate_per_s)
        picoseconds = (seconds - seconds[0]) * PS_PER_S
    if not picoseconds[-1] <= MAX_ARRIVAL_PS:
        raise UserError(
            f"{n} arrivals at {rate_per_s:g} per second take more than 106 days",
            remedy="raise the rate",
        )
    whole: NDArray[np.int64] = np.rint(picoseconds).astype(np.int64)
    return whole


def _shared_prefixes(prompts: NDArray[np.int32], samples: int, block_tokens: int) -> dict[str, Any]:
    """Prefix columns: the samples of a prompt have the same full blocks, different prompts none."""
    if not block_tokens or not (prompts >= block_tokens).any():
        return {}
    counts = prompts.astype(np.int64) // block_tokens
    firsts = np.cumsum(counts) - counts
    row_counts, row_firsts = np.repeat(counts, samples), np.repeat(firsts, samples)
    offsets = np.concatenate(([0], np.cumsum(row_counts)))
    blocks = np.arange(offsets[-1]) + np.repeat(row_firsts - offsets[:-1], row_counts)
    return {
        "prefix_offsets": offsets,
        "prefix_blocks": blocks,
        "prefix_block_tokens": block_tokens,
    }
