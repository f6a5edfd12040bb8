"""How one row chooses its next token. Data only; the executor does the choosing."""

from __future__ import annotations

from dataclasses import dataclass

# Neighbours of float32 are 1.2e-10 apart at 0.001 and farther above: at this temperature the
# second best of two logits of a model has no chance that float64 could hold beside 1.
LEAST_TEMPERATURE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Temperature and nucleus sampling with a seed per row; temperature 0 is greedy, and so is one
    below `LEAST_TEMPERATURE`, where a draw could differ only among equal logits.

    The n-th token of a row depends on its logits, `seed` and n alone, never on the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature must lie in [0, 100], got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    @property
    def greedy(self) -> bool:
        """Whether the highest logit always wins."""
        return self.temperature < LEAST_TEMPERATURE
