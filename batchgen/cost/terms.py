"""The roofline of one engine as functions of counts: tokens, rows, samples. It knows no passes.

Formulas: linear layers max(FLOPs / rate, bytes / rate) on the weights one GPU holds; touched
experts E (1 - (1 - k/E)^B); all-reduce 2 V (n-1)/n / W; expert exchange T k D b point to point,
where a token crosses to a node once and NVLink forwards it there. All results are picoseconds of
one GPU, the slowest of its engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil

import numpy as np

from batchgen.cost.api import PS_PER_S, FloatArray
from batchgen.cost.efficiency import Efficiency, interpolate
from batchgen.cost.experts import heaviest_rank, touched_experts
from batchgen.cost.tabled import CopyRates
from batchgen.cost.tiers import tier_rates
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout, attention_parameters_per_gpu, kv_split
from batchgen.model import DTYPE_BYTES, ModelSpec

MLA_TILE_HEADS = 64
_STATE_BYTES = 2  # hidden states travel in bf16


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Machine, model and layout of one engine and the times that follow.

    `b_attn` (rows) and `b_moe` (tokens) are the sub-batches of the plan, 0 for the whole batch.
    """

    model: ModelSpec
    gpu: GpuSpec
    layout: Layout
    efficiency: Efficiency = field(default_factory=Efficiency)
    b_attn: int = 0
    b_moe: int = 0
    expert_skew: float = 0.0
    gpus_per_node: int = 8

    # Rates ------------------------------------------------------------------------------------

    @property
    def num_nodes(self) -> int:
        """Nodes that one engine spans."""
        return -(-self.layout.gpus_per_engine // self.gpus_per_node)

    def _gemm_ps_per_flop(self, dtype: str) -> float:
        peak = self.gpu.peak_for(dtype)
        reached = interpolate(self.efficiency.gemm, peak / self.gpu.hbm_bytes_per_s)
        return PS_PER_S / (peak * reached * self.efficiency.engine)

    def _weight_ps_per_byte(self, dtype: str) -> float:
        eff, small = self.efficiency, DTYPE_BYTES[dtype] < DTYPE_BYTES["bf16"]
        points = eff.small_weight_bandwidth if small else eff.weight_bandwidth
        reached = interpolate(points, self.gpu.peak_for(dtype) / self.gpu.hbm_bytes_per_s)
        return PS_PER_S / (self.gpu.hbm_bytes_per_s * reached)

    @property
    def kernels(self) -> int:
        """Kernels of all layers. A dense layer: two norms, two projections, rotary with the cache,
        attention, three of a gated MLP, and one between; latent attention has two steps down and up
        with their norms and two absorbed products more; experts a router, top-k, two permutations,
        two grouped products and a sum instead of the MLP; weights of one byte a quantisation before
        each product."""
        model = self.model
        small = DTYPE_BYTES[model.weight_dtype] < DTYPE_BYTES["bf16"]
        every = 10 + (8 if model.attention == "mla" else 0) + (4 if small else 0)
        sparse = 5 + (3 if model.shared_ffn else 0)
        return model.num_layers * every + model.moe_layers * sparse

    @property
    def _attention_ridge(self) -> float:
        return self.gpu.peak_for("bf16") / self.gpu.hbm_bytes_per_s

    @property
    def over_pcie(self) -> bool:
        """Whether the GPUs of a node have no link of their own."""
        return self.gpu.intra_bytes_per_s <= self.gpu.host_bytes_per_s

    def peer_ps_per_byte(self, *, internode: bool) -> float:
        """Collectives of a tensor-parallel group."""
        if internode:
            return PS_PER_S / (self.gpu.inter_bytes_per_s * self.efficiency.network)
        reached = self.efficiency.pcie_peer if self.over_pcie else self.efficiency.nvlink
        return PS_PER_S / (self.gpu.intra_bytes_per_s * reached)

    def _linear(self, tokens: FloatArray, parameters: float, dtype: str) -> FloatArray:
        """One linear module with `parameters` weights on this GPU."""
        compute = tokens * (2.0 * parameters * self._gemm_ps_per_flop(dtype))
        read = parameters * DTYPE_BYTES[dtype] * self._weight_ps_per_byte(dtype)
        return np.maximum(compute, read)

    # Work of a rank on its own tokens -----------------------------------------------------------

    def projections(self, tokens: FloatArray) -> FloatArray:
        parameters = attention_parameters_per_gpu(self.model, self.layout.tp)
        return self.model.num_layers * self._linear(tokens, parameters, self.model.weight_dtype)

    def dense(self, tokens: FloatArray) -> FloatArray:
        """Dense FFN, shared experts and router."""
        model, tp = self.model, self.layout.tp
        total = np.zeros_like(tokens)
        if model.dense_layers:
            ffn = self._linear(tokens, model.ffn_parameters / tp, model.weight_dtype)
            total = total + model.dense_layers * ffn
        if model.is_moe:
            router = self._linear(tokens, model.router_parameters, model.embedding_dtype)
            total = total + model.moe_layers * router
            if model.shared_parameters:
                shared = self._linear(tokens, model.shared_parameters / tp, model.weight_dtype)
                total = total + model.moe_layers * shared
        return total

    def all_reduce(self, tokens: FloatArray) -> FloatArray:
        """Tensor-parallel sums of a rank: after attention and after each FFN that is split."""
        tp = self.layout.tp
        if tp == 1:
            return np.zeros_like(tokens)
        count = self.model.num_layers
        if self.layout.attention_dp == 1:
            count += self.model.num_layers
        else:  # the experts of a lockstep engine exchange tokens instead
            count += self.model.dense_layers
        internode = tp > self.gpus_per_node
        latency = self.gpu.intra_latency_s
        if internode:
            latency = self.gpu.inter_latency_s + self.efficiency.internode_collective_s
        volume = tokens * (2.0 * self.model.hidden * _STATE_BYTES * (tp - 1) / tp)
        # Rings cross the border of a node over all of its links, each with a part.
        share = self.gpus_per_node if internode else 1
        rate = self.peer_ps_per_byte(internode=internode) / share
        return count * (volume * rate + latency * PS_PER_S)

    def head(self, samples: FloatArray) -> FloatArray:
        parameters = self.model.embedding_parameters / self.layout.tp
        return self._linear(samples, parameters, self.model.embedding_dtype)

    # Attention scores ---------------------------------------------------------------------------

    def decode_slope(self, rows: int) -> float:
        """ps per KV token read by `rows` decoding rows, full-attention layers."""
        return self.model.full_layers * self._decode_layer_slope(rows)

    def _decode_layer_slope(self, rows: int) -> float:
        batch = min(rows, self._largest_batch)
        known = self._layer_slopes.get(batch)
        if known is None:
            known = self._layer_slopes[batch] = self._slope_of_batch(float(batch))
        return known

    @cached_property
    def _layer_slopes(self) -> dict[int, float]:
        """What is known of `_slope_of_batch`: tables ask for every number of rows, and more than
        once."""
        return {}

    @cached_property
    def _largest_batch(self) -> int:
        """Rows that attend at once, as far as more of them change anything."""
        eff = self.efficiency
        most = ceil(max(eff.decode_bandwidth[-1][0], eff.mla_decode[-1][0]))
        return min(most, self.b_attn) if self.b_attn else most

    def _slope_of_batch(self, batch: float) -> float:
        model, eff = self.model, self.efficiency
        kv_bytes = model.kv_bytes_per_token_layer / kv_split(model, self.layout.tp)
        read = kv_bytes / (self.gpu.hbm_bytes_per_s * interpolate(eff.decode_bandwidth, batch))
        flops = model.decode_flops_per_context_token / self.layout.tp
        if model.attention == "mla":
            # Heads share the latent, and matrix units take 64 of them at a time: with fewer on a
            # GPU the rest of a tile is empty. Modules of 8 to 128 heads take the same time per
            # token on H100 and H200 (aiconfigurator).
            flops *= max(1.0, MLA_TILE_HEADS * self.layout.tp / model.num_heads)
        # Grouped queries share a key-value load but the units stay far from their peak, so the
        # fraction measured for MLA bounds all kinds.
        scale = self._prefill_fraction / eff.prefill_attention[0][1]
        reached = interpolate(eff.mla_decode, batch) * scale
        compute = flops / (self.gpu.peak_for("bf16") * reached)
        return PS_PER_S * max(read, compute)

    def decode_fixed(self, rows: int) -> float:
        """ps of decode attention that do not depend on the context: windows, sub-batches."""
        model = self.model
        windowed = model.num_layers - model.full_layers
        total = windowed * rows * model.window * self._decode_layer_slope(rows)
        if self.b_attn:
            launches = -(-rows // self.b_attn) - 1
            total += launches * model.num_layers * self.efficiency.sub_batch_s * PS_PER_S
        return total

    @property
    def _prefill_fraction(self) -> float:
        return interpolate(self.efficiency.prefill_attention, self._attention_ridge)

    @property
    def _prefill_ps_per_flop(self) -> float:
        reached = self._prefill_fraction * self.efficiency.engine
        return PS_PER_S / (self.gpu.peak_for("bf16") * reached)

    @property
    def pair_ps(self) -> float:
        """ps per unit of chunk_pairs, one layer."""
        return self.model.prefill_flops_per_pair / self.layout.tp * self._prefill_ps_per_flop

    @property
    def read_bytes_ps(self) -> float:
        """ps to read the KV of one earlier token of a chunk, one layer."""
        kv_bytes = self.model.kv_bytes_per_token_layer / kv_split(self.model, self.layout.tp)
        return kv_bytes * self._weight_ps_per_byte(self.model.kv_dtype)

    @property
    def read_flops_ps(self) -> float:
        """ps to expand one earlier latent token of a chunk, one layer (MLA)."""
        return self.model.prefill_flops_per_read / self.layout.tp * self._prefill_ps_per_flop

    # Experts on the union of the tokens of the engine -------------------------------------------

    def experts(self, tokens: FloatArray) -> FloatArray:
        """Routed experts of all layers on the heaviest GPU, in groups of `b_moe` tokens."""
        if not self.model.is_moe:
            return np.zeros_like(tokens)
        if not self.b_moe:
            return self.model.moe_layers * self._expert_group(tokens)
        whole = np.floor_divide(tokens, self.b_moe)
        rest = tokens - whole * self.b_moe
        full = self._expert_group(np.full_like(tokens, self.b_moe))
        tail = np.where(rest > 0, self._expert_group(rest), 0.0)
        return self.model.moe_layers * (whole * full + tail)

    def _expert_group(self, tokens: FloatArray) -> FloatArray:
        model, layout = self.model, self.layout
        dtype = model.expert_dtype
        load = self._heaviest_rank
        share = load / layout.ep / layout.expert_tp
        flops = tokens * (2.0 * model.top_k * model.expert_matmul_parameters * share)
        rate = self._gemm_ps_per_flop(dtype) / self.efficiency.grouped
        # Of a touched expert each copy is: an upper bound, for few tokens do not reach all.
        fullest = layout.expert_slots(model.num_experts) / model.num_experts / layout.expert_tp
        touched = (
            touched_experts(tokens, model.num_experts, model.top_k, self.expert_skew) * fullest
        )
        bytes_ = touched * (model.expert_parameters * DTYPE_BYTES[dtype])
        return np.maximum(flops * rate, bytes_ * self._weight_ps_per_byte(dtype))

    @property
    def _heaviest_rank(self) -> float:
        """Expert load of the fullest GPU over the mean."""
        model, layout = self.model, self.layout
        spare = layout.spare_experts
        return heaviest_rank(model.num_experts, model.top_k, layout.ep, self.expert_skew, spare)

    def within_node(self, tokens: FloatArray) -> FloatArray:
        """Experts and exchange of a pass whose nodes work apart, `tokens` in all; the experts that
        a node lacks cross the host links of its GPUs meanwhile. Ranks that span nodes cannot."""
        if not self.nodes_apart:
            return self.experts(tokens) + self.exchange(tokens)
        nodes = self.num_nodes
        layout, inside = self.layout, self.layout.gpus_per_engine // nodes
        ep, spare = min(layout.ep, inside), layout.spare_experts
        if spare is not None and (ep == 1 or (self.model.num_experts + spare) % ep):
            spare = None
        ranks = layout.attention_dp // nodes
        own = Layout(tp=layout.tp, attention_dp=ranks, ep=ep, spare_experts=spare)
        node = replace(self, layout=own)
        time = node.experts(tokens / nodes) + node.exchange(tokens / nodes)
        return np.where(tokens > 0, np.maximum(time, self.lacking_ps), 0.0)

    @property
    def nodes_apart(self) -> bool:
        """Whether nodes of an engine can run passes of prompts by themselves."""
        nodes = self.num_nodes
        return nodes > 1 and self.layout.attention_dp % nodes == 0

    @property
    def lacking_ps(self) -> float:
        """What the experts that a node lacks take on the host link of each of its GPUs."""
        inside = self.layout.gpus_per_engine // self.num_nodes
        held = self.model.moe_layers * self.model.num_experts * self.model.expert_parameters
        lacking = held * (1 / inside - 1 / self.layout.gpus_per_engine)
        return lacking * DTYPE_BYTES[self.model.expert_dtype] * PS_PER_S / self.host_bytes_per_s

    def exchange(self, tokens: FloatArray, *, summed: bool = False) -> FloatArray:
        """Dispatch and combine of a lockstep engine; nothing for a single rank. summed: by two
        all-reduces, which move twice as much as all-gather and reduce-scatter.

        All links of a node carry what crosses its border, those of NVLink what a GPU takes in; the
        two overlap.
        """
        model, layout = self.model, self.layout
        if not model.is_moe or layout.attention_dp == 1:
            return np.zeros_like(tokens)
        gpus, nodes = layout.gpus_per_engine, self.num_nodes
        inside = min(self.gpus_per_node, gpus)
        eff = self.efficiency
        fixed_s = 2 * (eff.internode_collective_s if nodes > 1 else eff.intranode_collective_s)
        if self.efficiency.exchange != "dispatch" or layout.ep == 1:
            # Every GPU takes in the tokens of all others, and their sums go back.
            rounds = 4.0 if summed else 2.0
            whole = tokens * (rounds * model.hidden * _STATE_BYTES)
            received, crossed = whole * ((inside - 1) / inside), whole * ((nodes - 1) / nodes)
        else:
            load = self._heaviest_rank
            sent = DTYPE_BYTES["fp8"] if model.expert_dtype == "fp8" else _STATE_BYTES
            own = tokens / gpus * (load * model.hidden * (sent + _STATE_BYTES))
            # A token is sent once to every rank that has experts for it.
            reached = layout.ep * (1.0 - (1.0 - 1.0 / layout.ep) ** model.top_k)
            received = own * (reached * (inside - 1) / inside)
            remote = (nodes - 1) * (1.0 - (1.0 - 1.0 / nodes) ** model.top_k)
            if model.routed_groups > 1:
                # Experts of a token lie in so many groups, spread evenly over the nodes.
                remote = min(remote, model.routed_groups * (nodes - 1) / nodes)
            crossed = own * (inside * remote)
        time = received * self.peer_ps_per_byte(internode=False)
        if nodes > 1:
            time = np.maximum(time, crossed * (self.peer_ps_per_byte(internode=True) / inside))
        return model.moe_layers * (fixed_s * PS_PER_S + time)

    # Copies ---------------------------------------------------------------------------------------

    @property
    def host_bytes_per_s(self) -> float:
        """Host link of one GPU, each direction."""
        return tier_rates(self.gpu, self.efficiency, self.gpus_per_node).host

    @property
    def host_ps_per_token(self) -> float:
        """KV of one token between a rank and its host; its GPUs share the work."""
        rate = self.host_bytes_per_s * self.layout.tp
        return PS_PER_S * self.model.kv_bytes_per_token / rate

    def link_ps_per_token(self, *, internode: bool) -> float:
        """KV of one token from rank to rank, inside a node or between nodes."""
        if internode:
            rate = self.gpu.inter_bytes_per_s * self.efficiency.network
        else:
            rate = PS_PER_S / self.peer_ps_per_byte(internode=False)
        return PS_PER_S * self.model.kv_bytes_per_token / (rate * self.layout.tp)

    @property
    def copies(self) -> CopyRates:
        """All links of a rank, and a change of layout."""
        gpu = self.gpu
        return CopyRates(
            per_token={
                "host": self.host_ps_per_token,
                "intra": self.link_ps_per_token(internode=False),
                "inter": self.link_ps_per_token(internode=True),
            },
            fixed={
                "host": gpu.intra_latency_s * PS_PER_S,
                "intra": gpu.intra_latency_s * PS_PER_S,
                "inter": gpu.inter_latency_s * PS_PER_S,
            },
            switch_ps=round(self.efficiency.switch_s * PS_PER_S),
            over_host=self.over_pcie,
        )
