"""Small random models of every family with awkward shapes, and passes over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import PassRows
from batchgen.exec.config import load_config
from batchgen.exec.families import BY_NAME
from batchgen.exec.init import random_config, random_weights
from batchgen.exec.transformer import Transformer, load_model

FAMILIES = tuple(BY_NAME)
Segment = tuple[int, int, int]
"""Slot, first token, number of tokens."""


def write_model(directory: Path, arch: str, seed: int = 0, **changes: Any) -> Path:
    """A tiny random checkpoint without a tokenizer; `changes` of its config.json (None: null)."""
    directory.mkdir(parents=True, exist_ok=True)
    config = random_config(arch, "tiny", False) | {"eos_token_id": None} | changes
    (directory / "config.json").write_text(json.dumps(config))
    weights = random_weights(load_config(directory), seed)
    for name, tensor in weights.items():
        if "norm" not in name and tensor.ndim == 1 and "bias" not in name:
            tensor.mul_(10)  # sinks that matter
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def pass_rows(segments: Sequence[Segment], num_decodes: int, token_ids: Sequence[int]) -> PassRows:
    """A pass whose every token is wanted."""
    slots, starts, lengths = np.array(segments, dtype=np.int64).T
    return PassRows(
        slots=slots,
        starts=starts,
        lengths=lengths,
        num_decodes=num_decodes,
        token_ids=np.array(token_ids, dtype=np.int64),
        wanted=np.arange(len(token_ids)),
    )


class Passes:
    """A model whose passes return the logits of every token."""

    def __init__(
        self,
        model: Path | Transformer,
        page_tokens: int = 8,
        *,
        tokens: int = 2048,
    ) -> None:
        self.model = load_model(model, dtype="float32") if isinstance(model, Path) else model
        pages = tokens // page_tokens + 64  # every slot may leave one half empty
        self.arena = KvArena(
            "hbm",
            pages,
            self.model.config.kv_layout,
            page_tokens=page_tokens,
            dtype=torch.float32,
        )

    def run(
        self, rows: Sequence[list[int]], decodes: Sequence[Segment], chunks: Sequence[Segment]
    ) -> list[torch.Tensor]:
        """Logits of each segment, [tokens, vocab]."""
        segments = [*decodes, *chunks]
        for slot, start, length in segments:
            self.arena.reserve(slot, start + length)
        flat = [t for slot, start, n in segments for t in rows[slot][start : start + n]]
        logits = self.model.forward(self.arena, pass_rows(segments, len(decodes), flat))
        return list(logits.split([length for _, _, length in segments]))


def ragged_logits(
    passes: Passes, rows: Sequence[list[int]], num_prompts: Sequence[int], chunk: int
) -> list[torch.Tensor]:
    """Logits of every position: prompts in chunks of different rows together, then decode."""
    done = [0] * len(rows)
    logits: list[list[torch.Tensor]] = [[] for _ in rows]
    while any(n < len(row) for n, row in zip(done, rows, strict=True)):
        decodes, chunks = [], []
        for slot, row in enumerate(rows):
            left = num_prompts[slot] - done[slot]
            if left > 0:
                chunks.append((slot, done[slot], min(chunk + slot, left)))
            elif done[slot] < len(row):
                decodes.append((slot, done[slot], 1))
        parts = passes.run(rows, decodes, chunks)
        for (slot, _, length), part in zip([*decodes, *chunks], parts, strict=True):
            logits[slot].append(part)
            done[slot] += length
    return [torch.cat(parts) for parts in logits]
