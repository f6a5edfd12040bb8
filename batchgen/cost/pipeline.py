"""Passes through the stages of a pipeline (`CostModel`). It knows no other batches: nobody waits.

A stage is an engine of its own layers: another cost model says what a pass takes there, host work
included; only the last has the head. Between two stages the hidden states travel: every GPU of a
stage sends its part over its link, and the next stage gathers the parts.

    T = sum over stages of T(its layers) + sum over hops of (bytes / tp / link
        + bytes (tp - 1) / tp / link inside the node + latencies),   bytes = tokens x hidden x 2

A pass alone takes T; with S batches in flight the pipeline gives one in the longest stage's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, CostModel, FloatArray, IntArray, Link, PassDetail, PassLoad
from batchgen.cost.terms import Terms
from batchgen.cost.work import moved_bytes, useful_flops
from batchgen.layout import Layout
from batchgen.model import ModelSpec
from batchgen.runtime.advisor import RankLoad

STATE_BYTES = 2  # hidden states travel in bf16
Hop = tuple[float, float]
"""Between two stages: (ps per token, fixed ps)."""


class PipelineCost:
    """`CostModel` of one batch of a pipeline that has the stages to itself.

    stages: the cost of each stage's layers (one rank each, not `detailed`; objects may be shared);
    hops: from each stage to the next. layout: the whole, for reports.
    """

    def __init__(
        self,
        model: ModelSpec | None,
        layout: Layout,
        stages: Sequence[CostModel],
        hops: Sequence[Hop],
    ) -> None:
        if len(hops) != len(stages) - 1:
            raise ValueError(f"{len(stages)} stages have {len(hops)} hops between them")
        if any(stage.num_ranks != 1 or stage.detailed for stage in stages):
            raise ValueError("a stage has one rank, and times of sums")
        self.num_ranks = 1
        self.detailed = self.streams = False
        self.peers_over_host = stages[0].peers_over_host
        self.model, self.layout = model, layout
        self.stages, self.hops = list(stages), list(hops)
        self.num_stages = len(self.stages)
        # Stages before the last that are alike are asked once.
        self._kinds: list[CostModel] = []
        self._kind_of: list[int] = []
        for stage in self.stages[:-1]:
            if not any(stage is kind for kind in self._kinds):
                self._kinds.append(stage)
            self._kind_of.append(next(i for i, kind in enumerate(self._kinds) if kind is stage))
        self._last = self.stages[-1]

    # One pass by its stages -----------------------------------------------------------------------

    def stages_ps(self, load: RankLoad) -> list[int]:
        """What a pass takes in every stage; nothing for one without work."""
        decodes, context, tokens, pairs, reads, samples, checkpoint = load
        alike = [
            kind.pass_one_ps(decodes, context, tokens, pairs, reads, 0, checkpoint)
            for kind in self._kinds
        ]
        times = [alike[kind] for kind in self._kind_of]
        times.append(
            self._last.pass_one_ps(decodes, context, tokens, pairs, reads, samples, checkpoint)
        )
        return times

    def hops_ps(self, tokens: int) -> list[int]:
        """What the hidden states of so many tokens take from every stage to the next."""
        if not tokens:
            return [0] * len(self.hops)
        return [round(tokens * each + fixed) for each, fixed in self.hops]

    # All of them ----------------------------------------------------------------------------------

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        columns = [
            load.decodes, load.context, load.chunk_tokens, load.chunk_pairs,
            load.chunk_reads, load.samples, load.checkpoint,
        ]  # fmt: skip
        loads = np.stack([column[0] for column in columns], axis=1).tolist()
        return np.array([self.time_ps([tuple(one)]) for one in loads], dtype=np.int64)

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
        return self.time_ps([one])

    def time_ps(self, loads: Sequence[RankLoad]) -> int:
        (load,) = loads
        return sum(self.stages_ps(load)) + sum(self.hops_ps(load[0] + load[2]))

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        streamed = decodes if checkpoint else 0
        start = self.pass_one_ps(decodes, 0, samples=decodes, checkpoint=streamed)
        return start, sum(stage.decode_affine(decodes, checkpoint)[1] for stage in self.stages)

    def streams_ps(self, load: PassLoad) -> tuple[IntArray, IntArray]:
        raise ValueError("streams of stages do not queue with copies")

    def copy_ps(self, tokens: int, link: Link) -> int:
        """Every stage moves the KV of its layers over its own links, at the same time."""
        return max(stage.copy_ps(tokens, link) for stage in self.stages)

    def recompute_ps(self, tokens: int) -> int:
        return self.pass_one_ps(0, 0, chunk_tokens=tokens, chunk_pairs=tokens * tokens, samples=1)

    def switch_ps(self) -> int:
        return self._last.switch_ps()

    # Reports --------------------------------------------------------------------------------------

    def flops(self, load: PassLoad) -> FloatArray:
        if self.model is None:
            return np.zeros(load.num_passes)
        return useful_flops(self.model, load)

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        if self.model is None:
            return np.zeros(load.num_passes)
        return moved_bytes(self.model, self.layout.stage, load)

    def describe(self) -> dict[str, Any]:
        return {
            **self._last.describe(),
            "layout": str(self.layout),
            "hops_ps": [list(hop) for hop in self.hops],
        }


def hops_of(terms: Terms, stages: int) -> list[Hop]:
    """The hops of a pipeline whose first stage begins with a node; `terms` are of one stage."""
    tp, node, gpu = terms.layout.tp, terms.gpus_per_node, terms.gpu
    volume = terms.model.hidden * STATE_BYTES
    hops = []
    for stage in range(stages - 1):
        across = stage * tp // node != (stage + 1) * tp // node
        fixed_s = gpu.inter_latency_s if across else gpu.intra_latency_s
        each = volume / tp * terms.peer_ps_per_byte(internode=across)
        if tp > 1:
            wide = tp > node
            gathered = volume * (tp - 1) / tp
            each += gathered * terms.peer_ps_per_byte(internode=wide)
            fixed_s += gpu.inter_latency_s if wide else gpu.intra_latency_s
        hops.append((each, fixed_s * PS_PER_S))
    return hops
