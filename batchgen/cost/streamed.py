"""Passes of an engine whose weights or KV stay on its host (`CostModel`): another model's passes,
held back by the host link and by attention on the CPU.

    max(the pass as if all were there,
        (streamed weights + KV that is read, written or checkpointed) / host link,
        KV that is read / what the CPU reads in a second)

Copies run beside the computation of other layers, and the CPU beside both; the pass takes as long
as the slowest. A lockstep engine waits for its fullest rank; GPUs of a node share its CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batchgen.cost.api import (
    PS_PER_S,
    CostModel,
    FloatArray,
    IntArray,
    Link,
    PassDetail,
    PassLoad,
    RankLoad,
)
from batchgen.cost.residency import Residency


class StreamedCost:
    """`inner` on an engine whose GPUs fetch `weight_bytes` each in every pass.

    `link_bytes_per_s`: host link of one GPU. `kv_bytes`: of a token, on the link of each GPU of a
    rank. `cpu_bytes_per_s`: what the share of the CPUs of a rank reads.
    """

    def __init__(
        self,
        inner: CostModel,
        residency: Residency,
        *,
        weight_bytes: int,
        link_bytes_per_s: float,
        kv_bytes: float,
        cpu_bytes_per_s: float,
        model_kv_bytes: int,
    ) -> None:
        self.inner, self.residency = inner, residency
        self.num_ranks, self.detailed = inner.num_ranks, True
        self.weight_bytes = weight_bytes
        self._weights_ps = round(weight_bytes / link_bytes_per_s * PS_PER_S)
        self._on_host = residency.kv == "host"
        self._on_cpu = residency.attention == "cpu"
        self._token_ps = kv_bytes / link_bytes_per_s * PS_PER_S
        self._cpu_ps = model_kv_bytes / cpu_bytes_per_s * PS_PER_S if self._on_cpu else 0.0
        self._rates = {
            "weight_bytes": weight_bytes,
            "link_bytes_per_s": link_bytes_per_s,
            "cpu_bytes_per_s": cpu_bytes_per_s if self._on_cpu else None,
        }

    def _computed(self, load: PassLoad) -> PassLoad:
        """What the GPU computes of a load."""
        computed = replace(load, checkpoint=np.zeros_like(load.checkpoint))
        if self._on_cpu:
            computed.context = np.zeros_like(load.context)
        return computed

    def _copied_ps(self, load: PassLoad) -> IntArray:
        tokens = load.checkpoint
        if self._on_host:
            tokens = tokens + load.decodes + load.chunk_tokens + load.chunk_reads
            tokens = tokens if self._on_cpu else tokens + load.context
        tokens = tokens.max(axis=0)
        copied: IntArray = np.rint(tokens * self._token_ps).astype(np.int64)
        return copied + self._weights_ps

    def _attention_ps(self, load: PassLoad) -> IntArray:
        read: IntArray = np.rint(load.context.max(axis=0) * self._cpu_ps).astype(np.int64)
        return read

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        busy = (load.decodes + load.chunk_tokens).any(axis=0)
        if self._on_cpu or not self.inner.detailed:
            detail = None
        computed = self.inner.pass_ps(self._computed(load), detail)
        held = np.maximum(self._copied_ps(load), self._attention_ps(load))
        return np.where(busy, np.maximum(computed, held), 0)

    def time_ps(self, loads: Sequence[RankLoad]) -> int:
        load = PassLoad(*np.array(loads, dtype=np.int64).T[:, :, None])
        return int(self.pass_ps(load)[0])

    def pass_one_ps(
        self,
        decodes: int,
        context: int,
        chunk_tokens: int = 0,
        chunk_pairs: int = 0,
        chunk_reads: int = 0,
        samples: int = 0,
        checkpoint: int = 0,
    ) -> int:
        one = decodes, context, chunk_tokens, chunk_pairs, chunk_reads, samples, checkpoint
        return self.time_ps([one] * self.num_ranks)

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        raise ValueError("passes that wait for a link are not affine in the context")

    def copy_ps(self, tokens: int, link: Link) -> int:
        return self.inner.copy_ps(tokens, link)

    def recompute_ps(self, tokens: int) -> int:
        return self.pass_one_ps(0, 0, chunk_tokens=tokens, chunk_pairs=tokens * tokens, samples=1)

    def switch_ps(self) -> int:
        return self.inner.switch_ps()

    def breakdown(self, load: PassLoad) -> dict[str, IntArray]:
        busy = (load.decodes + load.chunk_tokens).any(axis=0)
        parts = self.inner.breakdown(self._computed(load))
        parts["host_link"] = np.where(busy, self._copied_ps(load), 0)
        parts["attention_cpu"] = self._attention_ps(load)
        return parts

    def flops(self, load: PassLoad) -> FloatArray:
        return self.inner.flops(load)

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        return self.inner.hbm_bytes(load)

    def describe(self) -> dict[str, Any]:
        residency = self.residency
        where = {name: getattr(residency, name) for name in ("weights", "kv", "attention")}
        return {**self.inner.describe(), "residency": where, **self._rates}
