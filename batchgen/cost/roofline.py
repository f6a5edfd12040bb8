"""A cost model from peaks and achieved fractions (`CostModel`). It reads no measurements.

A pass of an engine takes, over its ranks, the longest of

    max(own layers + expert layers on the union + fixed, checkpoint on the host link)
        + slope(rows) * context

The checkpoint hides behind the part that does not depend on the context: that keeps the pass affine
in the context with an integer slope, which the runtime needs for exact coalescing, and costs
nothing, since a decode step closes far fewer bytes than it reads weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, FloatArray, IntArray, Link, PassLoad
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.experts import touched_experts
from batchgen.cost.table import IntTable
from batchgen.cost.terms import Terms
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout, weight_bytes_per_gpu
from batchgen.model import DTYPE_BYTES, ModelSpec


def _overlap(first: FloatArray, second: FloatArray, theta: float) -> FloatArray:
    """max + theta * rest."""
    return np.maximum(first, second) + theta * np.minimum(first, second)


class RooflineCost:
    """`CostModel` of one engine of `layout`; share one object between identical engines.

    `b_attn` and `b_moe` are the sub-batches of the plan (0: whole), `expert_skew` the exponent of
    the popularity of experts, `gpus_per_node` decides which links an engine crosses.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        layout: Layout,
        *,
        efficiency: Efficiency | None = None,
        b_attn: int = 0,
        b_moe: int = 0,
        expert_skew: float = 0.0,
        gpus_per_node: int = 8,
    ) -> None:
        self.terms = Terms(
            model=model,
            gpu=gpu,
            layout=layout,
            efficiency=efficiency or Efficiency(),
            b_attn=b_attn,
            b_moe=b_moe,
            expert_skew=expert_skew,
            gpus_per_node=gpus_per_node,
        )
        self.num_ranks = layout.ranks_per_engine
        terms, eff = self.terms, self.terms.efficiency
        layer_ps = model.num_layers * eff.layer_s * PS_PER_S
        self._own = IntTable(
            lambda tokens: (
                layer_ps
                + _overlap(
                    terms.projections(tokens) + terms.dense(tokens),
                    terms.all_reduce(tokens),
                    eff.theta,
                )
            )
        )
        self._union = IntTable(
            lambda tokens: _overlap(terms.experts(tokens), terms.exchange(tokens), eff.theta)
        )
        self._head = IntTable(terms.head)
        self._slope = IntTable(_per_row(terms.decode_slope))
        self._fixed = IntTable(_per_row(terms.decode_fixed))
        self._step_ps = round(eff.step_s * PS_PER_S)
        self._prefill_ps = round(eff.prefill_step_s * PS_PER_S)
        self._host_ps = terms.host_ps_per_token
        full, windowed = model.full_layers, model.num_layers - model.full_layers
        self._pair = full * terms.pair_ps
        self._read_bytes = full * terms.read_bytes_ps
        self._read_flops = full * terms.read_flops_ps
        self._window_pair = windowed * terms.pair_ps
        self._window_width = 2 * model.window
        self._affine: dict[int, tuple[int, int]] = {}

    # Passes ---------------------------------------------------------------------------------------

    def pass_ps(self, load: PassLoad) -> IntArray:
        tokens = load.decodes + load.chunk_tokens
        union = tokens.sum(axis=0)
        shared = self._union.take(union) + self._step_ps
        base = self._own.take(tokens)
        base += self._head.take(load.samples)
        base += self._fixed.take(load.decodes)
        if load.chunk_tokens.any():
            base += self._chunk_ps(load)
            shared += np.where(load.chunk_tokens.any(axis=0), self._prefill_ps, 0)
        base += shared
        if load.checkpoint.any():
            np.maximum(base, np.rint(load.checkpoint * self._host_ps).astype(np.int64), out=base)
        base += self._slope.take(load.decodes) * load.context
        longest: IntArray = base.max(axis=0)
        longest[union == 0] = 0
        return longest

    def _chunk_ps(self, load: PassLoad) -> IntArray:
        time = np.maximum(load.chunk_pairs * self._pair, load.chunk_reads * self._read_bytes)
        time += load.chunk_reads * self._read_flops
        if self._window_pair:
            seen = np.minimum(load.chunk_pairs, self._window_width * load.chunk_tokens)
            time += seen * self._window_pair
        rounded: IntArray = np.rint(time).astype(np.int64)
        return rounded

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
        tokens = decodes + chunk_tokens
        if tokens == 0:
            return 0
        base = self._step_ps + self._own.at(tokens) + self._union.at(tokens * self.num_ranks)
        base += self._head.at(samples) + self._fixed.at(decodes)
        if chunk_tokens:
            time = max(chunk_pairs * self._pair, chunk_reads * self._read_bytes)
            time += chunk_reads * self._read_flops
            if self._window_pair:
                seen = min(chunk_pairs, self._window_width * chunk_tokens)
                time += seen * self._window_pair
            base += round(time) + self._prefill_ps
        if checkpoint:
            base = max(base, round(checkpoint * self._host_ps))
        return base + self._slope.at(decodes) * context

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        key = 2 * decodes + checkpoint
        known = self._affine.get(key)
        if known is None:
            if self.num_ranks != 1:
                raise ValueError(f"decode_affine needs one rank, the engine has {self.num_ranks}")
            start = self.pass_one_ps(
                decodes, 0, samples=decodes, checkpoint=decodes if checkpoint else 0
            )
            known = self._affine[key] = (start, self._slope.at(decodes))
        return known

    # Copies and switches --------------------------------------------------------------------------

    def copy_ps(self, tokens: int, link: Link) -> int:
        if tokens <= 0:
            return 0
        gpu = self.terms.gpu
        if link == "host":
            rate, latency = self._host_ps, gpu.intra_latency_s
        elif link == "intra":
            rate, latency = self.terms.link_ps_per_token(internode=False), gpu.intra_latency_s
        else:
            rate, latency = self.terms.link_ps_per_token(internode=True), gpu.inter_latency_s
        return round(tokens * rate + latency * PS_PER_S)

    def recompute_ps(self, tokens: int) -> int:
        """As if every rank of the engine prefilled as much at the same time."""
        return self.pass_one_ps(0, 0, chunk_tokens=tokens, chunk_pairs=tokens * tokens, samples=1)

    def switch_ps(self) -> int:
        return round(self.terms.efficiency.switch_s * PS_PER_S)

    def with_layout(self, layout: Layout) -> RooflineCost:
        """The same engine in another layout, for instance attention split over more GPUs."""
        terms = self.terms
        return RooflineCost(
            terms.model,
            terms.gpu,
            layout,
            efficiency=terms.efficiency,
            b_attn=terms.b_attn,
            b_moe=terms.b_moe,
            expert_skew=terms.expert_skew,
            gpus_per_node=terms.gpus_per_node,
        )

    # Reports --------------------------------------------------------------------------------------

    def breakdown(self, load: PassLoad) -> dict[str, IntArray]:
        terms, eff = self.terms, self.terms.efficiency
        tokens = load.decodes + load.chunk_tokens
        union = tokens.sum(axis=0)
        busy = union > 0
        own, both = tokens.astype(np.float64), union.astype(np.float64)
        layers = terms.model.num_layers * eff.layer_s * PS_PER_S
        chunks = load.chunk_tokens.any(axis=0)
        scores = self._slope.take(load.decodes) * load.context + self._fixed.take(load.decodes)
        parts: dict[str, FloatArray | IntArray] = {
            "projections": np.where(tokens > 0, terms.projections(own), 0.0).max(axis=0),
            "attention_decode": scores.max(axis=0),
            "attention_prefill": self._chunk_ps(load).max(axis=0),
            "dense": np.where(tokens > 0, terms.dense(own), 0.0).max(axis=0),
            "experts": np.where(busy, terms.experts(both), 0.0),
            "collectives": np.where(
                busy, terms.all_reduce(own).max(axis=0) + terms.exchange(both), 0.0
            ),
            "lm_head": self._head.take(load.samples).max(axis=0),
            "overhead": np.where(busy, layers + self._step_ps, 0.0)
            + np.where(chunks, self._prefill_ps, 0),
            "checkpoint": (load.checkpoint * self._host_ps).max(axis=0),
        }
        return {name: np.rint(part).astype(np.int64) for name, part in parts.items()}

    def flops(self, load: PassLoad) -> FloatArray:
        model = self.terms.model
        per_token = model.flops_per_token()
        head = per_token.pop("lm_head")
        windowed = model.num_layers - model.full_layers
        scores = model.full_layers * model.decode_flops_per_context_token
        total = (load.decodes + load.chunk_tokens) * float(sum(per_token.values()))
        total += load.samples * float(head)
        total += load.context * float(scores)
        total += load.decodes * float(
            windowed * model.window * model.decode_flops_per_context_token
        )
        total += load.chunk_pairs * float(model.full_layers * model.prefill_flops_per_pair)
        total += load.chunk_reads * float(model.full_layers * model.prefill_flops_per_read)
        seen = np.minimum(load.chunk_pairs, self._window_width * load.chunk_tokens)
        total += seen * float(windowed * model.prefill_flops_per_pair)
        summed: FloatArray = total.sum(axis=0)
        return summed

    def hbm_bytes(self, load: PassLoad) -> FloatArray:
        terms, model = self.terms, self.terms.model
        union = (load.decodes + load.chunk_tokens).sum(axis=0)
        held = weight_bytes_per_gpu(model, terms.layout)
        per_gpu = sum(held.values()) - held["experts"] - held["embedding"]
        total = np.where(union > 0, float(per_gpu * terms.layout.gpus_per_engine), 0.0)
        if model.is_moe:
            touched = touched_experts(union.astype(np.float64), model.num_experts, model.top_k)
            size = model.expert_parameters * DTYPE_BYTES[model.expert_dtype]
            total += touched * (model.moe_layers * size)
        moved = load.context + load.chunk_reads + load.decodes + load.chunk_tokens
        total += moved.sum(axis=0) * float(model.kv_bytes_per_token)
        return total

    def describe(self) -> dict[str, Any]:
        terms = self.terms
        return {
            "kind": "roofline",
            "model": terms.model.name,
            "gpu": terms.gpu.name,
            "layout": str(terms.layout),
            "b_attn": terms.b_attn,
            "b_moe": terms.b_moe,
            "expert_skew": terms.expert_skew,
            "gpus_per_node": terms.gpus_per_node,
            "efficiency": terms.efficiency.as_dict(),
        }


def _per_row(function: Any) -> Any:
    """A scalar function of a row count as an elementwise one; few distinct counts occur."""

    def over(rows: FloatArray) -> FloatArray:
        return np.array([function(int(row)) if row > 0 else 0.0 for row in rows.ravel()]).reshape(
            rows.shape
        )

    return over
