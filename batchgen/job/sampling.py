"""How one row chooses its next token. Data only; the executor does the choosing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

# Neighbours of float32 are 1.2e-10 apart at 0.001 and farther above: at this temperature the
# second best of two logits of a model has no chance that float64 could hold beside 1.
LEAST_TEMPERATURE = 1e-12

# Least, most, and whether the least itself is allowed.
RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 100.0, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 100.0, False),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
}
MAX_TOP_K = 1 << 31


def check_range(name: str, value: float) -> None:
    """Raise ValueError unless `value` is one that the number of that name may have."""
    least, most, closed = RANGES[name]
    if not (least <= value if closed else least < value) or not value <= most:
        interval = f"{'[' if closed else '('}{least:g}, {most:g}]"
        raise ValueError(f"{name} must lie in {interval}, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a row gets that does not say otherwise. The temperature of OpenAI's API is 1."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True)  # no slots: `with_seed` copies all fields at once
class Sampling:
    """What stands between the logits of a row and its next token; the defaults change nothing.

    Temperature 0 is greedy, and so is one below `LEAST_TEMPERATURE`, where a draw could differ only
    among equal logits. In this order: `logit_bias` (pairs of id and what is added), penalties, no
    end before `min_tokens` tokens, temperature, the best `top_k` (0: all), the fewest of these that
    have `top_p` of their probability, none below `min_p` times the best. `logprobs`: how many
    alternatives to report with each token; None reports nothing.

    The n-th token of a row depends on its logits, its tokens, `seed` and n alone, never on the
    batch. Raises ValueError for a number out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name in RANGES:
            check_range(name, getattr(self, name))
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k must lie in [0, {MAX_TOP_K}], got {self.top_k}")

    def with_seed(self, seed: int) -> Sampling:
        """The same with another seed; nothing is checked again, for a job has millions of rows."""
        found = object.__new__(Sampling)
        found.__dict__.update(self.__dict__, seed=seed)
        return found

    @property
    def greedy(self) -> bool:
        """Whether the highest logit always wins."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def penalised(self) -> bool:
        """Whether the row's tokens change its logits."""
        return self.repetition_penalty != 1.0 or bool(
            self.presence_penalty or self.frequency_penalty
        )

    @property
    def plain(self) -> bool:
        """Whether the next token is the best of the model's logits, and nothing else is asked."""
        changed = self.penalised or self.logit_bias or self.min_tokens
        return self.greedy and not changed and self.logprobs is None


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one of the samples of a row; the first has the row's own, so that asking for more
    samples does not change the first."""
    if not sample:
        return seed
    digest = hashlib.blake2b(f"{seed}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
