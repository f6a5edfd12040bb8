"""Mixes of requests that compute and requests that read memory, at a density and a sharing wanted.
It knows three kinds of request and no policy.

Recipe: chats and videos in such numbers that compute time over memory time is the density, and
questions that share long examples until that part of all prompt tokens is shared (BlendServe, arXiv
2411.16102, section 6.2). Mean lengths are those of its table: BurstGPT 244 in and 27 out, OpenVid
121 in, MMLU 804 in and 2 out with 0.86 shared. Spreads (sigma of log-normals 0.5 to 1) are assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.errors import UserError
from batchgen.trace.lengths import Lognormal
from batchgen.trace.table import Trace, make_trace

BLOCK_TOKENS = 8
"""Small enough for the system prompt of a trace that shares 2 % of its prompts."""
SYSTEM_TOKENS = 8
SHARED_QUESTION_TOKENS = 688  # 0.86 of 804
SUBJECTS = 57  # of MMLU, each with its own examples
CHAT_BUDGET, QUESTION_BUDGET = 512, 16

LEAST_VIDEO_TOKENS = CHAT_BUDGET + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Times of a machine: of a token through the layers, of a pair of prompt tokens in attention,
    of a KV token that is read. Seconds."""

    token_s: float
    pair_s: float
    read_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """density: compute time less what sharing saves, over memory time. sharing: part of all prompt
    tokens. video_tokens: mean output of a video."""

    num_rows: int
    density: float
    sharing: float
    video_tokens: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_rows < 100:
            raise UserError(f"a mix of {self.num_rows} rows", remedy="ask for at least 100")
        if not (self.density > 0 and 0 <= self.sharing < 0.8):
            raise UserError(
                f"a mix of density {self.density:g} and sharing {self.sharing:g}",
                remedy="give a density above 0 and a sharing from 0 to 0.8",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """How many rows of a mix chat, ask questions and make videos, in this order in its columns."""

    chats: int
    questions: int
    videos: int


def optimum_s(trace: Trace, rates: Rates) -> tuple[float, float]:
    """(compute, memory) time of all rows of a trace, every shared prefix computed once."""
    prompt = trace.prompt_tokens.astype(np.float64)
    output = trace.output_tokens.astype(np.float64)
    saved = shared_tokens(trace)
    compute = (prompt.sum() - saved + output.sum()) * rates.token_s
    own = np.minimum(prompt, np.diff(trace.prefix_offsets) * trace.prefix_block_tokens)
    compute += float((prompt**2 - own**2).sum()) * rates.pair_s
    return float(compute), float((prompt * output + output**2 / 2).sum()) * rates.read_s


def overlapped_s(compute_s: float, memory_s: float, theta: float) -> float:
    """What no order beats where passes leave `theta` of the shorter of both times: at best the same
    one is longer in every pass (`batchgen.cost.overlapped`)."""
    return max(compute_s, memory_s) + theta * min(compute_s, memory_s)


def shared_tokens(trace: Trace) -> float:
    """Prompt tokens that are saved when every block is computed once."""
    distinct = np.unique(trace.prefix_blocks).size
    return float((trace.prefix_blocks.size - distinct) * trace.prefix_block_tokens)


def mix(wanted: Mix, rates: Rates) -> tuple[Trace, Kinds]:
    """The rows of a mix in random order, all of them there at the start. Numbers of rows are such
    that density and sharing come out, as far as rows drawn are average."""
    rng = np.random.default_rng(wanted.seed)
    most = max(wanted.num_rows, 10_000)  # so that means are means
    chat = Lognormal(mean=244, sigma=1.0, max=8192).sample(rng, most)
    chat = np.maximum(chat, SYSTEM_TOKENS + 1)
    said = Lognormal(mean=27, sigma=1.0, max=CHAT_BUDGET).sample(rng, most)
    asked = SHARED_QUESTION_TOKENS + Lognormal(mean=116, sigma=0.5, max=1024).sample(rng, most)
    answer = rng.integers(1, 4, size=most, dtype=np.int32)
    scene = np.maximum(Lognormal(mean=121, sigma=0.5, max=1024).sample(rng, most), 9)
    frames = Lognormal(mean=wanted.video_tokens, sigma=0.5, max=4 * wanted.video_tokens)
    film = np.maximum(frames.sample(rng, most), LEAST_VIDEO_TOKENS)
    kinds = _numbers(wanted, rates, (chat, said), (asked, answer), (scene, film))
    parts = (
        (chat, said, kinds.chats),
        (asked, answer, kinds.questions),
        (scene, film, kinds.videos),
    )
    prompt = np.concatenate([one[:count] for one, _, count in parts])
    output = np.concatenate([two[:count] for _, two, count in parts])
    budget = np.concatenate(
        [
            np.full(kinds.chats, CHAT_BUDGET),
            np.full(kinds.questions, QUESTION_BUDGET),
            film[: kinds.videos],
        ]
    )
    per_subject = SHARED_QUESTION_TOKENS // BLOCK_TOKENS
    subject = rng.integers(0, SUBJECTS, size=kinds.questions)
    examples = 2 + subject[:, None] * per_subject + np.arange(per_subject)
    blocks = [np.zeros(kinds.chats, np.int64), examples.ravel(), np.ones(kinds.videos, np.int64)]
    counts = [1] * kinds.chats + [per_subject] * kinds.questions + [1] * kinds.videos
    made = make_trace(
        name=f"blend-{wanted.density:g}-{wanted.sharing:g}",
        prompt_tokens=prompt,
        output_tokens=output,
        max_output_tokens=budget,
        prefix_offsets=np.concatenate([[0], np.cumsum(counts)]),
        prefix_blocks=np.concatenate(blocks),
        prefix_block_tokens=BLOCK_TOKENS,
    )
    return made.take(rng.permutation(len(made))), kinds


Lengths = tuple[NDArray[np.int32], NDArray[np.int32]]


def _numbers(
    wanted: Mix, rates: Rates, chats: Lengths, questions: Lengths, videos: Lengths
) -> Kinds:
    """Two linear equations of mean lengths, scaled to the number of rows."""
    means = [_means(one, two, rates) for one, two in (chats, questions, videos)]
    saved = (SYSTEM_TOKENS, SHARED_QUESTION_TOKENS, SYSTEM_TOKENS)
    # Per kind: sharing = saved - wanted part of prompts; balance = compute - wanted x memory.
    share = [s - wanted.sharing * one[0] for s, one in zip(saved, means, strict=True)]
    balance = [
        one[1] - s * rates.token_s - wanted.density * one[2]
        for s, one in zip(saved, means, strict=True)
    ]
    matrix = np.array([[1.0, 1.0, 1.0], share, balance])
    numbers = np.linalg.solve(matrix, [wanted.num_rows, 0.0, 0.0])
    if (numbers < 0.5).any():
        raise UserError(
            f"no mix of {wanted.num_rows} rows has density {wanted.density:g} and sharing "
            f"{wanted.sharing:g}",
            remedy="ask for more rows, or for values nearer to 1 and 0.3",
        )
    chat, question, video = (round(float(number)) for number in numbers)
    return Kinds(chats=chat, questions=question, videos=video)


def _means(prompt: NDArray[np.int32], output: NDArray[np.int32], rates: Rates) -> list[float]:
    """Mean prompt tokens, compute time and memory time of a row."""
    p, d = prompt.astype(np.float64), output.astype(np.float64)
    compute = (p + d) * rates.token_s + p**2 * rates.pair_s
    return [float(p.mean()), float(compute.mean()), float((p * d + d**2 / 2).mean() * rates.read_s)]
