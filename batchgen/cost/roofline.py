"""A cost model from peaks and achieved fractions (`CostModel`). It reads no measurements."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, FloatArray
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.tabled import ChunkRates, TabledCost, per_row
from batchgen.cost.terms import Terms
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout
from batchgen.model import ModelSpec


def _overlap(first: FloatArray, second: FloatArray, theta: float) -> FloatArray:
    """max + theta * rest."""
    return np.maximum(first, second) + theta * np.minimum(first, second)


class RooflineCost(TabledCost):
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
        eff = efficiency or Efficiency()
        terms = Terms(
            model=model,
            gpu=gpu,
            layout=layout,
            efficiency=eff,
            b_attn=b_attn,
            b_moe=b_moe,
            expert_skew=expert_skew,
            gpus_per_node=gpus_per_node,
        )
        self.terms = terms
        self._kernels_ps = terms.kernels * eff.kernel_s * PS_PER_S
        full, windowed = model.full_layers, model.num_layers - model.full_layers
        super().__init__(
            model,
            layout,
            own=lambda tokens: (
                self._kernels_ps
                + _overlap(
                    terms.projections(tokens) + terms.dense(tokens),
                    terms.all_reduce(tokens),
                    eff.theta,
                )
            ),
            union=terms.experts,
            exchange=terms.exchange if layout.attention_dp > 1 and model.is_moe else None,
            gathered=partial(terms.exchange, summed=True) if eff.exchange == "all-reduce" else None,
            theta=eff.theta,
            head=terms.head,
            slope=per_row(terms.decode_slope),
            fixed=per_row(terms.decode_fixed),
            step_ps=round(eff.step_s * PS_PER_S),
            chunks=ChunkRates(
                pair=full * terms.pair_ps,
                read_bytes=full * terms.read_bytes_ps,
                read=full * terms.read_flops_ps,
                window_pair=windowed * terms.pair_ps,
                window_width=2 * model.window,
                step_ps=round(eff.prefill_step_s * PS_PER_S),
            ),
            copies=terms.copies,
            prompts=terms.within_node if eff.prefill_within_node else None,
        )
        if eff.prefill_within_node and terms.nodes_apart:
            self.streams, self._fetched_ps = True, round(terms.lacking_ps)

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
