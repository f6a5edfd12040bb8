"""Rotary embedding: frequencies with long-context scaling, angles by position, the rotation.

Angles are float32 whatever the weights are.
"""

from __future__ import annotations

import math

import torch

from batchgen.exec.config import Llama3Scaling, RopeConfig, YarnScaling

BLOCK = 1024  # positions


def rope_frequencies(rope: RopeConfig) -> torch.Tensor:
    """Angular frequencies [dim / 2] in float32."""
    exponent = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    frequencies = 1.0 / (rope.theta**exponent)
    if rope.llama3 is not None:
        return _llama3(frequencies, rope.llama3)
    if rope.yarn is not None:
        return _yarn(frequencies, rope, rope.yarn)
    return frequencies / rope.linear_factor


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1.0 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn(frequencies: torch.Tensor, rope: RopeConfig, scaling: YarnScaling) -> torch.Tensor:
    def place(turns: float) -> float:
        """The (fractional) dimension pair that turns so often within the original context."""
        ratio = scaling.original_max_position / (turns * 2 * math.pi)
        return rope.dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high = high + 0.001 if high == low else high  # a step, not a division by zero
    pairs = torch.arange(rope.dim // 2, dtype=torch.float32)
    stretched = ((pairs - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies / scaling.factor * stretched + frequencies * (1.0 - stretched)


class RotaryTable:
    """cos and sin of the angles of positions, each [positions, 1, dim / 2], as far as needed.

    A table, so that a token's angles cost a look-up and cannot depend on its batch: it grows by
    whole blocks of positions, each always computed alone.
    """

    def __init__(self, rope: RopeConfig, device: torch.device) -> None:
        self._frequencies = rope_frequencies(rope)
        self._gain = 1.0 if rope.yarn is None else rope.yarn.attention_factor
        self._device = device
        self._cos: torch.Tensor = torch.empty(0, 1, rope.dim // 2, device=device)
        self._sin = self._cos

    def at(self, positions: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of `positions` [T], none of them behind `last`: two of [T, 1, dim / 2]."""
        self.reserve(last)
        return self.rows(positions)

    def rows(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of positions that the table holds, for `reserve` has seen to it."""
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of all positions that it holds, each [positions, 1, dim / 2]."""
        return self._cos, self._sin

    def reserve(self, last: int) -> None:
        """Let the table hold positions up to `last`. Growing makes new tables."""
        have = len(self._cos)
        if last < have:
            return
        # At least doubled, so that growing costs little however long a row becomes.
        want = -(-max(last + 1, 2 * have) // BLOCK)
        blocks = [self._block(number) for number in range(have // BLOCK, want)]
        self._cos = torch.cat([self._cos, *(cos for cos, _ in blocks)])
        self._sin = torch.cat([self._sin, *(sin for _, sin in blocks)])

    def _block(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(number * BLOCK, (number + 1) * BLOCK).float()
        angles = positions[:, None, None] * self._frequencies
        cos, sin = angles.cos() * self._gain, angles.sin() * self._gain
        return cos.to(self._device), sin.to(self._device)


def apply_rope(x_THD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + D/2) of each head, the Hugging Face convention."""
    first, second = x_THD.float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_THD.dtype)
