"""Passes of an engine whose weights or KV stay on its host or disks (`CostModel`): another model's
passes, held back by the host link, the disks and attention on the CPU.

    max(the pass as if all were there,
        (streamed weights + KV that is read) / host link,
        KV that is written or checkpointed / host link,
        (weights and KV on the disks) / what the disks read + KV written there / what they write,
        KV that is read / what the CPU reads in a second)

Copies run beside the computation of other layers, and the CPU beside both; what comes from a disk
passes through buffers of the host while the layer before it crosses the link. The pass takes as
long as the slowest, and `theta` of the shorter of what is fetched over the link and the longest of
all else, for engines that overlap these less. A lockstep engine waits for its fullest rank; GPUs of
a node share its CPU.
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
from batchgen.cost.tiers import TierRates

MOST_TERM_PS = 1 << 60
"""13 days, so that terms of a pass add to what int64 holds. No run has such passes."""


class StreamedCost:
    """`inner` on an engine whose GPUs fetch `weight_bytes` each in every pass, `disk_bytes` of them
    from the disks.

    `rates`: of one GPU. `kv_bytes`: of a token, on the link of each GPU of a rank.
    `cpu_bytes_per_s`: what the share of the CPUs of a rank reads.
    """

    def __init__(
        self,
        inner: CostModel,
        residency: Residency,
        *,
        weight_bytes: int,
        disk_bytes: int,
        rates: TierRates,
        kv_bytes: float,
        cpu_bytes_per_s: float,
        model_kv_bytes: int,
        theta: float = 0.0,
    ) -> None:
        self.inner, self.residency = inner, residency
        self.num_ranks, self.detailed, self.streams = inner.num_ranks, True, True
        self.peers_over_host = inner.peers_over_host
        self._weights_ps = min(round(weight_bytes / rates.host * PS_PER_S), MOST_TERM_PS)
        self._theta = theta
        self._off_gpu = residency.kv != "hbm"
        self._on_cpu = residency.attention == "cpu"
        self._token_ps = kv_bytes / rates.host * PS_PER_S
        self._disk_ps = min(round(disk_bytes / rates.disk_read * PS_PER_S), MOST_TERM_PS)
        on_disk = kv_bytes * PS_PER_S if residency.kv == "disk" else 0.0
        self._disk_token_ps = on_disk / rates.disk_read, on_disk / rates.disk_write
        self._cpu_ps = model_kv_bytes / cpu_bytes_per_s * PS_PER_S if self._on_cpu else 0.0
        self._rates = {
            "weight_bytes": weight_bytes,
            "disk_bytes": disk_bytes,
            "link_bytes_per_s": rates.host,
            "disk_read_bytes_per_s": rates.disk_read,
            "disk_write_bytes_per_s": rates.disk_write,
            "cpu_bytes_per_s": cpu_bytes_per_s if self._on_cpu else None,
            "stream_theta": theta,
        }

    def _computed(self, load: PassLoad) -> PassLoad:
        """What the GPU computes of a load."""
        computed = replace(load, checkpoint=np.zeros_like(load.checkpoint))
        if self._on_cpu:
            computed.context = np.zeros_like(load.context)
        return computed

    def streams_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        up, down = np.zeros_like(load.context), load.checkpoint
        if self._off_gpu:
            up = load.chunk_reads if self._on_cpu else load.chunk_reads + load.context
            down = down + load.decodes + load.chunk_tokens
        busy = (load.decodes + load.chunk_tokens).any(axis=0)
        fetched = self._weights_ps + _ps(up.max(axis=0), self._token_ps)
        return np.where(busy, fetched, 0), _ps(down.max(axis=0), self._token_ps)

    def _on_disks_ps(self, load: PassLoad) -> IntArray:
        """A disk reads or writes."""
        read, write = self._disk_token_ps
        tokens = (load.context + load.chunk_reads).max(axis=0)
        time: IntArray = self._disk_ps + _ps(tokens, read)
        return time + _ps((load.decodes + load.chunk_tokens).max(axis=0), write)

    def _attention_ps(self, load: PassLoad) -> IntArray:
        return _ps(load.context.max(axis=0), self._cpu_ps)

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        busy = (load.decodes + load.chunk_tokens).any(axis=0)
        if self._on_cpu or not self.inner.detailed:
            detail = None
        computed = self.inner.pass_ps(self._computed(load), detail)
        fetched, written = self.streams_ps(load)
        rest = np.maximum(np.maximum(computed, written), self._on_disks_ps(load))
        rest = np.maximum(rest, self._attention_ps(load))
        times = np.maximum(fetched, rest)
        if self._theta:
            times = times + np.rint(self._theta * np.minimum(fetched, rest)).astype(np.int64)
        return np.where(busy, times, 0)

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

    def flops(self, load: PassLoad) -> FloatArray:
        return self.inner.flops(load)

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        return self.inner.hbm_bytes(load)

    def describe(self) -> dict[str, Any]:
        residency = self.residency
        names = ("weights", "kv", "attention", "disk_share")
        where = {name: getattr(residency, name) for name in names}
        return {**self.inner.describe(), "residency": where, **self._rates}


def _ps(tokens: IntArray, each: float) -> IntArray:
    rounded: IntArray = np.rint(np.minimum(tokens * each, MOST_TERM_PS)).astype(np.int64)
    return rounded
