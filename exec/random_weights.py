"""Random weights made where they will be used: for measuring shapes whose checkpoints nobody has
here. What comes out of such a model means nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from batchgen.exec.config import ModelConfig
from batchgen.exec.transformer import DTYPES, Transformer


class RandomTensors:
    """A `Source` of tensors in one dtype on one device, the same for the same seed."""

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0) -> None:
        self.device = torch.device(device)
        self._dtype = dtype
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def has(self, name: str) -> bool:
        return False

    def get(self, name: str, shape: Sequence[int], kinds: Sequence[torch.dtype]) -> torch.Tensor:
        """Norms are ones; products keep the size of what they multiply."""
        del kinds
        if "norm" in name or len(shape) < 2:
            return torch.ones(tuple(shape), dtype=self._dtype, device=self.device)
        made = torch.empty(tuple(shape), dtype=self._dtype, device=self.device)
        return made.normal_(0.0, 1.0 / math.sqrt(shape[-1]), generator=self._generator)


def random_model(config: ModelConfig, *, dtype: str, device: str, seed: int = 0) -> Transformer:
    """A model of random weights in the memory of `device`."""
    source = RandomTensors(DTYPES[dtype], device, seed)
    return Transformer(config, source, DTYPES[dtype], device=device)
