"""How long a pass takes whose weights, KV or hidden states cross the host link, by the order in
which a system does it: one formula for each. It knows no model and no machine.

A pass goes through the layers one by one. In each, the weights come once for the whole block of
rows, and the GPU computes the GPU batches of the block one after the other. With W the time of all
weights on the link, U and D all else that goes up and down it, d the weights that are read from
disks, r and w the KV that is read from and written to them, G and C what GPU and CPU compute, L
layers and n GPU batches:

    free          max(f, o) + theta min(f, o)        f = W + U,  o = max(G, D, d + r + w, C)
    layer-ahead   the same, theta = 1 / L
    zig-zag       a = max(U + r, D + w, G + C)
                  prompts     max(W + d + (U + r) / n, a / n) + (n - 1) / n a
                  decodes     W + U + max(D, d + r, w, G + C)
    cgopipe       max(W + U, D, G, C, d + r + w, (U + D + G + C) / n) + (U + D + G + C) / (L n)
    as-read       max(max(W + U, G - A) + A, D, d + r + w, C)        A: decode attention of the GPU

"free": all copies beside all computation. "layer-ahead" (ZeRO-Inference): the next layer comes
while this one is computed, so that the first copy and the last computation stand alone.
"zig-zag" (FlexGen, algorithm 1): in each step the next layer's weights (all of them in the step of
the first GPU batch), the next batch's cache and the last batch's results are copied beside the
computation of one GPU batch, then the device is synchronised; attention on the CPU is part of the
computation. Passes with decodes add what goes up instead, as its authors' own cost model does, and
that was fitted to their runs. "cgopipe" (MoE-Lightning): weights come in n pages between the hidden
states of the micro-batches, the CPU attends for one while the GPU computes others; a layer takes as
long as its busiest resource, or as one micro-batch from the GPU over link, CPU and link, and the
pipeline fills once. "as-read" (vLLM's CPU offload): kernels of products read weights of the host.

Every formula is convex in each of its times, so that the first token of a context costs least: the
lower bounds of a run stand on that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batchgen.cost.api import IntArray

SCHEDULES = ("free", "zig-zag", "cgopipe", "layer-ahead", "as-read")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWork:
    """What each pass asks of every resource, all layers and GPU batches together: ps, int64
    [num_passes] (or one number for all).

    weights, up    on the link from the host: weights; KV and hidden states
    down           on the link to the host: KV, checkpoints, hidden states
    disk_weights, disk_read, disk_write   of the disks: weights; KV that is read, written
    gpu, attention computation of the GPU, and the part of it that is attention of decodes
    cpu            attention of decodes on the CPU
    decoding       bool [num_passes]: rows decode in the pass
    batches        GPU batches that have rows, at least 1
    """

    weights: IntArray | int
    up: IntArray
    down: IntArray
    disk_weights: IntArray | int
    disk_read: IntArray
    disk_write: IntArray
    gpu: IntArray
    attention: IntArray
    cpu: IntArray
    decoding: NDArray[np.bool_]
    batches: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSchedule:
    """`kind`: one of SCHEDULES. `num_batches`: GPU batches of a full block, whose fill is that of
    all passes, lest a pass of few rows pay more for a token than one of many. `theta`: the part of
    the shorter of copies and the rest that is not hidden behind the longer ("free" alone)."""

    kind: str
    num_layers: int
    num_batches: int = 1
    theta: float = 0.0

    def pass_ps(self, work: BlockWork) -> IntArray:
        """Duration of each pass in ps, int64 [num_passes]."""
        if self.kind == "zig-zag":
            return _zig_zag(work)
        if self.kind == "cgopipe":
            return _cgopipe(work, self.num_layers * self.num_batches)
        if self.kind == "as-read":
            return _as_read(work)
        theta = 1.0 / self.num_layers if self.kind == "layer-ahead" else self.theta
        return _beside(work, theta)


def _disks(work: BlockWork) -> IntArray:
    """A disk reads or writes."""
    total: IntArray = work.disk_weights + work.disk_read + work.disk_write
    return total


def _beside(work: BlockWork, theta: float) -> IntArray:
    fetched = work.weights + work.up
    rest = np.maximum(np.maximum(work.gpu, work.down), _disks(work))
    rest = np.maximum(rest, work.cpu)
    times: IntArray = np.maximum(fetched, rest)
    if theta:
        times = times + np.rint(theta * np.minimum(fetched, rest)).astype(np.int64)
    return times


def _zig_zag(work: BlockWork) -> IntArray:
    computed = work.gpu + work.cpu
    up = work.up + work.disk_read
    whole = np.maximum(np.maximum(up, work.down + work.disk_write), computed)
    step = whole // work.batches
    first = work.weights + work.disk_weights + up // work.batches
    prompts = np.maximum(first, step) + whole - step
    rest = np.maximum(np.maximum(work.down, computed), work.disk_weights + work.disk_read)
    decodes = work.weights + work.up + np.maximum(rest, work.disk_write)
    times: IntArray = np.where(work.decoding, decodes, prompts)
    return times


def _cgopipe(work: BlockWork, steps: int) -> IntArray:
    chain = work.up + work.down + work.gpu + work.cpu
    times = np.maximum(np.maximum(work.weights + work.up, work.down), _disks(work))
    times = np.maximum(np.maximum(times, work.gpu), work.cpu)
    filled: IntArray = np.maximum(times, chain // work.batches)
    return filled + chain // steps


def _as_read(work: BlockWork) -> IntArray:
    products = work.gpu - work.attention
    times = np.maximum(work.weights + work.up, products) + work.attention
    rest: IntArray = np.maximum(np.maximum(work.down, _disks(work)), work.cpu)
    whole: IntArray = np.maximum(times, rest)
    return whole
