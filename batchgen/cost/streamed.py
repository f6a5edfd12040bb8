"""Passes of an engine whose weights or KV stay on its host or disks (`CostModel`): another model's
passes, held back by the host link, the disks and attention on the CPU.

    the pass as if all were there
    (streamed weights + KV that is read) / host link
    KV that is written or checkpointed / host link
    (weights and KV on the disks) / what the disks read + KV written there / what they write
    KV that is read / what the CPU reads in a second

What of these runs beside what is the order of the system (`batchgen.cost.block`); what comes from a
disk passes through buffers of the host while the layer before it crosses the link. Where a pass is
a block of several GPU batches, the GPU computes each of them by itself, and the hidden states of
all tokens cross the link both ways in every layer. A lockstep engine waits for its fullest rank;
GPUs of a node share its CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
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
from batchgen.cost.block import BlockSchedule, BlockWork
from batchgen.cost.residency import Residency
from batchgen.cost.tiers import TierRates

MOST_TERM_PS = 1 << 60
"""13 days, so that terms of a pass add to what int64 holds. No run has such passes."""


class StreamedCost:
    """`inner` on an engine whose GPUs fetch `weight_bytes` each in every pass, `disk_bytes` of them
    from the disks.

    `rates`: of one GPU. `kv_bytes`, `hidden_bytes`: of a token, on the link of each GPU of a rank,
    all layers together. `cpu_bytes_per_s`: what the share of the CPUs of a rank reads.
    `copies_of_weights`: engines of a node that fetch the same weights together, each a part of
    every layer, and gather them at `gather_bytes_per_s`.
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
        hidden_bytes: float,
        schedule: BlockSchedule,
        copies_of_weights: int = 1,
        gather_bytes_per_s: float = 1.0,
    ) -> None:
        self.inner, self.residency = inner, residency
        self.num_ranks, self.detailed, self.streams = inner.num_ranks, True, True
        self.peers_over_host = inner.peers_over_host
        copies = copies_of_weights
        fetch_s = weight_bytes / copies / rates.host
        fetch_s += weight_bytes * (copies - 1) / copies / gather_bytes_per_s
        self._weights_ps = min(round(fetch_s * PS_PER_S), MOST_TERM_PS)
        self._schedule = schedule
        self._batches = residency.gpu_batches
        block = self._batches > 1
        self._hidden_ps = hidden_bytes / rates.host * PS_PER_S if block else 0.0
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
            "stream_theta": schedule.theta,
            "block_schedule": schedule.kind,
            "copies_of_weights": copies_of_weights,
        }

    def _computed(self, load: PassLoad) -> PassLoad:
        """What the GPU computes of a load."""
        computed = replace(load, checkpoint=np.zeros_like(load.checkpoint))
        if self._on_cpu:
            computed.context = np.zeros_like(load.context)
        return computed

    def _crosses_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        """KV and hidden states on the link of the fullest rank, from the host and to it."""
        up, down = np.zeros_like(load.context), load.checkpoint
        tokens = load.decodes + load.chunk_tokens
        if self._off_gpu:
            up = load.chunk_reads if self._on_cpu else load.chunk_reads + load.context
            down = down + tokens
        hidden = _ps(tokens.max(axis=0), self._hidden_ps)
        up_ps, down_ps = (_ps(kv.max(axis=0), self._token_ps) for kv in (up, down))
        return up_ps + hidden, down_ps + hidden

    def streams_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        busy = (load.decodes + load.chunk_tokens).any(axis=0)
        up, down = self._crosses_ps(load)
        return np.where(busy, self._weights_ps + up, 0), down

    def _kv_on_disks_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        """KV that the disks read, and write."""
        read, write = self._disk_token_ps
        tokens = (load.context + load.chunk_reads).max(axis=0)
        return _ps(tokens, read), _ps((load.decodes + load.chunk_tokens).max(axis=0), write)

    def _attention_ps(self, load: PassLoad) -> IntArray:
        return _ps(load.context.max(axis=0), self._cpu_ps)

    def _computed_ps(self, load: PassLoad, detail: PassDetail | None) -> IntArray:
        """What the GPU computes, one GPU batch after the other; nothing of its own where a pass has
        no rows."""
        if self._batches == 1:
            return self.inner.pass_ps(load, detail)
        times = self.inner.pass_ps(gpu_batches(load, self._batches))
        total: IntArray = times.reshape(-1, load.num_passes).sum(axis=0)
        return total

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        tokens = (load.decodes + load.chunk_tokens).max(axis=0)
        if self._on_cpu or not self.inner.detailed:
            detail = None
        computed = self._computed(load)
        gpu = self._computed_ps(computed, detail)
        attention = np.zeros_like(gpu)
        if self._schedule.kind == "as-read":
            bare = replace(computed, context=np.zeros_like(computed.context))
            even = PassDetail.even(bare) if detail is not None else None
            attention = gpu - self._computed_ps(bare, even)
        up, down = self._crosses_ps(load)
        read, write = self._kv_on_disks_ps(load)
        work = BlockWork(
            weights=self._weights_ps,
            up=up,
            down=down,
            disk_weights=self._disk_ps,
            disk_read=read,
            disk_write=write,
            gpu=gpu,
            attention=attention,
            cpu=self._attention_ps(load),
            decoding=load.decodes.max(axis=0) > 0,
            batches=np.clip(tokens, 1, self._batches),
        )
        return np.where(tokens > 0, self._schedule.pass_ps(work), 0)

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
        each = self.inner.breakdown(gpu_batches(self._computed(load), self._batches))
        parts = {name: time.reshape(-1, load.num_passes).sum(axis=0) for name, time in each.items()}
        parts["host_link"] = np.maximum(*self.streams_ps(load))
        parts["disk"] = np.where(busy, self._disk_ps + sum(self._kv_on_disks_ps(load)), 0)
        parts["attention_cpu"] = self._attention_ps(load)
        return parts

    def flops(self, load: PassLoad) -> FloatArray:
        return self.inner.flops(self._computed(load))

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        """Each GPU batch reads the weights anew; KV that the CPU reads is not there."""
        each = self.inner.hbm_bytes(gpu_batches(self._computed(load), self._batches))
        total: FloatArray = each.reshape(-1, load.num_passes).sum(axis=0)
        return total

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "residency": asdict(self.residency), **self._rates}


def gpu_batches(load: PassLoad, batches: int) -> PassLoad:
    """Every pass cut into so many GPU batches, as passes [batches * num_passes], the first batch of
    each pass first; no more batches than some pass fills. Rows and prompt tokens are spread evenly;
    where there are fewer than batches, the first batches have one each. All sums are those of the
    pass."""
    decode_parts = np.clip(load.decodes, 1, batches)
    chunk_parts = np.clip(load.chunk_tokens, 1, batches)
    both = np.maximum(decode_parts, chunk_parts)
    parts = {
        "decodes": decode_parts,
        "context": decode_parts,
        "chunk_tokens": chunk_parts,
        "chunk_pairs": chunk_parts,
        "chunk_reads": chunk_parts,
        "samples": both,
        "checkpoint": both,
    }
    count = int(both.max(initial=1))  # the batches behind are empty
    columns = {name: _shares(getattr(load, name), part, count) for name, part in parts.items()}
    return PassLoad(**columns)


def _shares(total: IntArray, parts: IntArray, count: int) -> IntArray:
    """Of each entry [num_ranks, num_passes] its equal `parts`, and nothing behind them, up to
    `count`: [num_ranks, count * num_passes]."""
    k = np.arange(count)[:, None, None]
    shares = np.where(k < parts, total * (k + 1) // parts - total * k // parts, 0)
    return np.moveaxis(shares, 0, 1).reshape(total.shape[0], -1)


def _ps(tokens: IntArray, each: float) -> IntArray:
    rounded: IntArray = np.rint(np.minimum(tokens * each, MOST_TERM_PS)).astype(np.int64)
    return rounded
