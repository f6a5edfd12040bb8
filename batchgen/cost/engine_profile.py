"""A cost model from an engine's operator profile of the same GPU and model (`CostModel`).

    own layers     norms, projections, rotary, MLP at the pass's tokens; all-reduce by bytes
    attention      by (prompt piece, its history, decodes, their mean KV) together, and the skew
    experts        the measured layer at a GPU's share of pairs and of touched experts; all-gather
                   and reduce-scatter between ranks, each with its latency
    head           product with the vocabulary and sampler at the rows that sample; their gather
    step           host work of an engine

Attention is no sum over rows, so passes want the detail of a load. Links and host work are the
roofline's (`batchgen/cost/efficiency.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, FloatArray, IntArray, PassDetail, PassLoad, RankLoad
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.engine_tables import DENSE, MLP, EngineTables
from batchgen.cost.experts import heaviest_rank, touched_experts
from batchgen.cost.tabled import ChunkRates, TabledCost
from batchgen.cost.terms import Terms
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout
from batchgen.model import ModelSpec

PS_PER_US = PS_PER_S // 10**6
LOGIT_BYTES = 2
ONCE = ("embedding", "final_layernorm")  # of a pass, not of a layer
NORMS = 2  # of a layer


class EngineProfileCost(TabledCost):
    """`CostModel` of one engine of `layout` on the machine that was profiled."""

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        layout: Layout,
        tables: EngineTables,
        *,
        efficiency: Efficiency | None = None,
        expert_skew: float = 0.0,
        gpus_per_node: int = 8,
    ) -> None:
        eff = efficiency or Efficiency()
        self.tables, self.gpu = tables, gpu
        self._efficiency = eff
        self._terms = terms = Terms(
            model=model,
            gpu=gpu,
            layout=layout,
            efficiency=replace(eff, exchange="gather"),  # vLLM's between ranks of a node
            gpus_per_node=gpus_per_node,
        )
        self._expert_skew = expert_skew
        self.model, self.layout = model, layout
        super().__init__(
            model,
            layout,
            own=self._own_ps,
            union=self.experts_ps,
            exchange=terms.exchange if layout.attention_dp > 1 and model.is_moe else None,
            head=self._head_ps,
            slope=np.zeros_like,
            fixed=np.zeros_like,
            step_ps=round(eff.step_s * PS_PER_S),
            chunks=ChunkRates(pair=0.0, step_ps=round(eff.prefill_step_s * PS_PER_S)),
            copies=terms.copies,
        )
        self.detailed = True

    # Modules, in ps ------------------------------------------------------------------------------

    def _layers_us(self, tokens: FloatArray, names: Sequence[str]) -> FloatArray:
        total = np.zeros_like(tokens)
        for name in names:
            curve = self.tables.layers.get(name)
            if curve is not None:
                total = total + curve.at(tokens) * (NORMS if name == "layernorm" else 1)
        return total

    def _own_parts(self, tokens: FloatArray) -> dict[str, FloatArray]:
        model = self.model
        attention = [name for name in (*DENSE, "qk_norm") if name not in ONCE]
        return {
            "projections": PS_PER_US * model.num_layers * self._layers_us(tokens, attention),
            "dense": PS_PER_US * model.dense_layers * self._layers_us(tokens, MLP),
            "overhead": PS_PER_US * self._layers_us(tokens, ONCE),
            "collectives": self._terms.all_reduce(tokens),
        }

    def _own_ps(self, tokens: FloatArray) -> FloatArray:
        return np.asarray(sum(self._own_parts(tokens).values()))

    def experts_ps(self, tokens: FloatArray) -> FloatArray:
        """All layers on the heaviest GPU. An expert split over GPUs counts as a share of experts:
        the same bytes and products."""
        model, layout, grid = self.model, self.layout, self.tables.experts
        if grid is None or not model.is_moe:
            return np.zeros_like(tokens)
        gpus = layout.ep * layout.expert_tp
        spare = layout.spare_experts
        heavy = heaviest_rank(model.num_experts, model.top_k, layout.ep, self._expert_skew, spare)
        copies = 1.0 + (spare or 0) / model.num_experts
        touched = touched_experts(tokens, model.num_experts, model.top_k) * (copies / gpus)
        return np.asarray(PS_PER_US * model.moe_layers * grid.at(tokens * heavy / gpus, touched))

    def _gather_ps(self, volume: FloatArray, gpus: int) -> FloatArray:
        """All-gather of so many bytes in all over a ring."""
        internode = gpus > self._terms.gpus_per_node
        latency = self.gpu.inter_latency_s if internode else self.gpu.intra_latency_s
        rate = self._terms.peer_ps_per_byte(internode=internode)
        return np.asarray(volume * ((gpus - 1) / gpus * rate) + latency * PS_PER_S)

    def _head_ps(self, samples: FloatArray) -> FloatArray:
        layers, tp = self.tables.layers, self.layout.tp
        time = PS_PER_US * (layers["lm_head"].at(samples) + layers["sampler"].at(samples))
        if tp > 1:
            time = time + self._gather_ps(samples * (self.model.vocab * LOGIT_BYTES), tp)
        return time

    def attention_ps(self, load: PassLoad, detail: PassDetail) -> IntArray:
        """All layers, [num_ranks, num_passes]."""
        attention, layers = self.tables.attention, self.model.num_layers
        ranks = []
        for rank in range(load.num_ranks):
            mine = detail.piece_ranks == rank
            time = attention.pass_time(
                load.decodes[rank],
                load.context[rank],
                detail.longest[rank],
                detail.shortest[rank],
                detail.piece_tokens[mine],
                detail.piece_starts[mine],
            )
            ranks.append(np.rint(time * (PS_PER_US * layers)).astype(np.int64))
        return np.stack(ranks)

    # Passes --------------------------------------------------------------------------------------

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        tokens = load.decodes + load.chunk_tokens
        union = tokens.sum(axis=0)
        time = self._own.take(tokens) + self._head.take(load.samples)
        time += self.attention_ps(load, PassDetail.even(load) if detail is None else detail)
        time += self.union_ps(load) + self._step_ps
        time += np.where(load.chunk_tokens.any(axis=0), self._chunks.step_ps, 0)
        if load.checkpoint.any():
            streamed = np.rint(load.checkpoint * self._host_ps).astype(np.int64)
            np.maximum(time, streamed, out=time)
        longest: IntArray = time.max(axis=0)
        longest[union == 0] = 0
        return longest

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
        one = (decodes, context, chunk_tokens, chunk_pairs, chunk_reads, samples, checkpoint)
        return self.time_ps([one] * self.num_ranks)

    def time_ps(self, loads: Sequence[RankLoad]) -> int:
        columns = np.array(loads, dtype=np.int64).T[:, :, None]
        return int(self.pass_ps(PassLoad(*columns))[0])

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        raise ValueError("measured attention is not affine in the context")

    # Reports -------------------------------------------------------------------------------------

    def breakdown(self, load: PassLoad) -> dict[str, IntArray]:
        tokens = load.decodes + load.chunk_tokens
        union = tokens.sum(axis=0).astype(np.float64)
        busy = union > 0
        parts = {
            name: np.where(tokens > 0, part, 0.0).max(axis=0)
            for name, part in self._own_parts(tokens.astype(np.float64)).items()
        }
        parts["experts"] = np.where(busy, self.experts_ps(union), 0.0)
        parts["collectives"] = parts["collectives"] + np.where(
            busy, self._terms.exchange(union), 0.0
        )
        parts["overhead"] = parts["overhead"] + np.where(busy, self._step_ps, 0)
        chunks = load.chunk_tokens.any(axis=0)
        parts["overhead"] = parts["overhead"] + np.where(chunks, self._chunks.step_ps, 0)
        rounded = {name: np.rint(part).astype(np.int64) for name, part in parts.items()}
        scores = self.attention_ps(load, PassDetail.even(load)).max(axis=0)
        decodes = load.decodes.any(axis=0)
        return {
            **rounded,
            "attention_decode": np.where(decodes, scores, 0),
            "attention_prefill": np.where(decodes, 0, scores),
            "lm_head": self._head.take(load.samples).max(axis=0),
            "checkpoint": np.rint(load.checkpoint * self._host_ps).astype(np.int64).max(axis=0),
        }

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "engine profile",
            "model": self.model.name,
            "gpu": self.gpu.name,
            "layout": str(self.layout),
            "profile": self.tables.folder,
            "measured": self.tables.name,
            "skew": self.tables.attention.skew is not None,
            "efficiency": self._efficiency.as_dict(),
        }
