"""A cost model from measured kernels (`CostModel`): a pass is the sum of its kernels.

    own layers     qkv, output and dense products, element-wise kernels, all-reduce
    experts        the table of routed experts on the union, gather and scatter between ranks
    decodes        attention at the rows' mean context: a constant and a slope for each row count
    prompts        attention by pairs at long chunks, and what short chunks take beyond that
    head           the product with the vocabulary, and sampling
    step           host work of an engine

Element-wise kernels are not in the tables: bytes over bandwidth and a launch each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, FloatArray
from batchgen.cost.efficiency import Efficiency
from batchgen.cost.operators import latent
from batchgen.cost.operators.kernels import Kernels
from batchgen.cost.tabled import ChunkRates, TabledCost
from batchgen.cost.terms import Terms
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec
from batchgen.layout import Layout
from batchgen.model import DTYPE_BYTES, ModelSpec

STATE_BYTES = 2  # hidden states are bf16
SQUARES_BYTES = 4  # a mean square is float32
SMALL_KERNELS = 5  # of a layer: two norms with residuals, rotary with cache write, activation, ...
LATENT_SMALL_KERNELS = 2  # of a layer, what the modules of latent attention have not
QK_NORM_KERNELS = 2  # queries, keys
JOINT_NORM_KERNELS = 3  # squares, and scales after their sum over the GPUs
ROUTING_KERNELS = 1  # top-k of the router's logits
SMALL_KERNEL_S = 2.5e-6  # a launch inside a CUDA graph
SMALL_BANDWIDTH = 0.7  # of the peak that they reach
SHORT_CONTEXT, LONG_CONTEXT = 1024, 8192  # between which the slope of decode attention is taken
LONG_CHUNK = 8192
MOST_GPUS = 8  # of a collective
MEASURED_LATENT = (
    *(latent.HIDDEN, latent.Q_RANK, latent.KV_RANK),
    *(latent.ROPE, latent.NOPE, latent.VALUE),
)
SAMPLED_BYTES = 3 * 4  # per logit: written, read for the maximum, read for the sum


class MeasuredCost(TabledCost):
    """`CostModel` of one engine of `layout`.

    `skew`: 0 even routing of experts, 1 and 2 popularity by rank^-1.01 and rank^-1.2.
    `small_kernel_s`: launch of an element-wise kernel. Latent attention is measured as whole
    modules with the sizes of DeepSeek-V3 (any number of heads): UserError for others.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        layout: Layout,
        *,
        kernels: Kernels | None = None,
        efficiency: Efficiency | None = None,
        skew: float = 1.0,
        gpus_per_node: int = 8,
        small_kernel_s: float = SMALL_KERNEL_S,
    ) -> None:
        self._is_latent = model.attention == "mla"
        if self._is_latent and _latent_sizes(model) != MEASURED_LATENT:
            raise UserError(
                f"{model.name}: latent attention was measured with the sizes of DeepSeek-V3 only",
                remedy="use the roofline: leave out --costs",
            )
        together = layout.tp if layout.attention_dp == 1 else layout.gpus_per_engine
        most = min(gpus_per_node, MOST_GPUS)
        if together > most:
            raise UserError(
                f"layout {layout}: {together} GPUs exchange hidden states, measured are up to "
                f"{most} of one node",
                remedy="use the roofline: leave out --costs",
            )
        self._gpus_per_node, self._small_kernel_s = gpus_per_node, small_kernel_s
        self.kernels = Kernels(gpu) if kernels is None else kernels
        self.gpu, self.skew = gpu, skew
        self._efficiency = eff = efficiency or Efficiency()
        terms = Terms(
            model=model, gpu=gpu, layout=layout, efficiency=eff, gpus_per_node=gpus_per_node
        )
        self._terms = terms
        self._tp = layout.tp
        self._heads: dict[str, Any] = {
            "heads": -(-model.num_heads // layout.tp),
            "kv_heads": -(-model.num_kv_heads // layout.tp),
            "head_dim": model.head_dim,
            "dtype": model.kv_dtype,
        }
        self._latent: dict[str, Any] = {
            "heads": -(-model.num_heads // layout.tp),
            "kv_bytes": DTYPE_BYTES[model.kv_dtype],
            "dtype": model.weight_dtype,
        }
        full, windowed = model.full_layers, model.num_layers - model.full_layers
        self.model, self.layout = model, layout
        # Attention of a prompt is launch + token * t + pair * t^2, through long chunks.
        middle, longest = self._chunk_s(np.array([1.0 * LONG_CHUNK, 2.0 * LONG_CHUNK]), 0)
        pair_s = max(0.0, (longest - 2 * middle) / (2 * LONG_CHUNK**2))
        token_s = max(0.0, middle / LONG_CHUNK - pair_s * LONG_CHUNK)
        if not pair_s:
            pair_s, token_s = middle / LONG_CHUNK**2, 0.0
        self._pair_ps, self._token_ps = (full * s * PS_PER_S for s in (pair_s, token_s))
        window_token_ps = 0.0
        if windowed:
            one = float(self._chunk_s(np.array([1.0 * LONG_CHUNK]), model.window)[0])
            window_token_ps = windowed * one / LONG_CHUNK * PS_PER_S
        super().__init__(
            model,
            layout,
            own=self._own_ps,
            union=self._experts_ps,
            exchange=self._exchange_ps if layout.attention_dp > 1 and model.is_moe else None,
            head=self._head_ps,
            slope=self._slope_ps,
            fixed=self._fixed_ps,
            step_ps=round(eff.step_s * PS_PER_S),
            chunks=ChunkRates(
                pair=self._pair_ps,
                read_bytes=full * terms.read_bytes_ps,
                read=full * terms.read_flops_ps,  # latents that are expanded again
                token=self._token_ps + window_token_ps,
                step_ps=round(eff.prefill_step_s * PS_PER_S),
            ),
            chunk_overhead=self._short_chunk_ps,
            copies=terms.copies,
            beside=eff.decode_beside_prompt if _runs_flash_attention_2(gpu) else 1.0,
        )

    # Parts of a pass, in seconds per layer -------------------------------------------------------

    def projections_s(self, tokens: FloatArray) -> FloatArray:
        """Those of latent attention are parts of its modules."""
        if self._is_latent:
            return np.zeros_like(tokens)
        model, tp = self.model, self._tp
        q = model.num_heads * model.head_dim / tp
        kv = -(-model.num_kv_heads // tp) * model.head_dim
        gemm, dtype = self.kernels.gemm, model.weight_dtype
        return gemm(tokens, q + 2 * kv, model.hidden, dtype) + gemm(tokens, model.hidden, q, dtype)

    def mlp_s(self, tokens: FloatArray, width: int) -> FloatArray:
        """A gated MLP of `width` neurons in all."""
        model = self.model
        gemm, part, dtype = self.kernels.gemm, width / self._tp, model.weight_dtype
        up = 2 if model.gated else 1
        return gemm(tokens, up * part, model.hidden, dtype) + gemm(
            tokens, model.hidden, part, dtype
        )

    def small_s(self, tokens: FloatArray, width: float) -> FloatArray:
        """Norms with residuals, rotary with cache write, activation of `width` neurons (0: routing
        instead); what the modules of latent attention have of these is not counted again."""
        model = self.model
        moved = 8 * model.hidden + 3 * width / self._tp
        if self._is_latent:
            moved -= 4 * model.hidden
        else:
            heads = model.num_heads + 2 * model.num_kv_heads
            moved += 2 * heads * model.head_dim / self._tp
        kernels = self._small_kernels + (0 if width else ROUTING_KERNELS)
        rate = self.gpu.hbm_bytes_per_s * SMALL_BANDWIDTH
        return np.asarray(kernels * self._small_kernel_s + tokens * (STATE_BYTES * moved) / rate)

    @property
    def _small_kernels(self) -> int:
        """Of one layer without its router."""
        if self._is_latent:
            return LATENT_SMALL_KERNELS
        if self.model.qk_norm_joint:
            return SMALL_KERNELS + JOINT_NORM_KERNELS
        return SMALL_KERNELS + (QK_NORM_KERNELS if self.model.qk_norm else 0)

    @property
    def num_small_kernels(self) -> int:
        """Element-wise kernels of one pass."""
        model = self.model
        return model.num_layers * self._small_kernels + model.moe_layers * ROUTING_KERNELS

    def all_reduce_s(self, tokens: FloatArray) -> FloatArray:
        """One sum over the GPUs of a rank."""
        return self.collective_s("all_reduce", self._tp, tokens * (self.model.hidden * STATE_BYTES))

    def collective_s(self, what: str, gpus: int, size: FloatArray) -> FloatArray:
        """Of a whole tensor of so many bytes. Those over PCIe were measured on no GPU of the
        tables: a ring at the catalog's link."""
        if gpus == 1 or not self._terms.over_pcie:
            return self.kernels.collective(what, gpus, size)
        rounds = 2 if what == "all_reduce" else 1
        sent = size * (rounds * (gpus - 1) / gpus * self._terms.peer_ps_per_byte(internode=False))
        return np.asarray(sent / PS_PER_S + self.gpu.intra_latency_s)

    def joint_norm_s(self, tokens: FloatArray) -> FloatArray:
        """Mean squares of queries and of keys, summed over the GPUs that share their heads."""
        if not self.model.qk_norm_joint:
            return np.zeros_like(tokens)
        return self.collective_s("all_reduce", self._tp, tokens * (2 * SQUARES_BYTES))

    def experts_s(self, tokens: FloatArray) -> FloatArray:
        model, layout = self.model, self.layout
        return self.kernels.seconds(
            "experts",
            model.expert_dtype,
            tokens=tokens,
            hidden=model.hidden,
            width=model.expert_ffn,
            top_k=model.top_k,
            experts=model.num_experts,
            tp=layout.expert_tp,
            ep=layout.ep,
            skew=self.skew,
        )

    def exchange_s(self, tokens: FloatArray) -> FloatArray:
        """Hidden states of all ranks to all, and the sums back."""
        if self.layout.attention_dp == 1:
            return np.zeros_like(tokens)
        gpus, size = self.layout.gpus_per_engine, tokens * (self.model.hidden * STATE_BYTES)
        there = self.collective_s("all_gather", gpus, size)
        return there + self.collective_s("reduce_scatter", gpus, size)

    # Tables of `TabledCost`, in picoseconds -------------------------------------------------------

    def _own_parts(self, tokens: FloatArray) -> dict[str, FloatArray]:
        """Seconds of all layers by module, for the tokens of a rank."""
        model = self.model
        dense, sparse = model.dense_layers, model.moe_layers
        # After attention and after each MLP; the experts of a lockstep engine exchange instead.
        sums = model.num_layers + dense + (sparse if self.layout.attention_dp == 1 else 0)
        parts = {
            "projections": model.num_layers * self.projections_s(tokens),
            "dense": np.zeros_like(tokens),
            "collectives": sums * self.all_reduce_s(tokens)
            + model.num_layers * self.joint_norm_s(tokens),
            "overhead": np.zeros_like(tokens),
        }
        if dense:
            parts["dense"] += dense * self.mlp_s(tokens, model.ffn)
            parts["overhead"] += dense * self.small_s(tokens, model.ffn)
        if sparse:
            router = self.kernels.gemm(tokens, model.num_experts, model.hidden, "bf16")
            parts["dense"] += sparse * router
            parts["overhead"] += sparse * self.small_s(tokens, 0.0)
            if model.shared_ffn:
                parts["dense"] += sparse * self.mlp_s(tokens, model.shared_ffn)
        return parts

    def _union_parts(self, tokens: FloatArray, fullest: FloatArray) -> dict[str, FloatArray]:
        """The same for the tokens of all ranks, and of the fullest, which all others wait for."""
        layers = self.model.moe_layers
        if not layers:
            return {"experts": np.zeros_like(tokens), "collectives": np.zeros_like(tokens)}
        return {
            "experts": layers * self.experts_s(tokens),
            "collectives": layers * self.exchange_s(fullest * self.num_ranks),
        }

    def _own_ps(self, tokens: FloatArray) -> FloatArray:
        return np.asarray(sum(self._own_parts(tokens).values()) * PS_PER_S)

    def _experts_ps(self, tokens: FloatArray) -> FloatArray:
        if not self.model.moe_layers:
            return np.zeros_like(tokens)
        return self.model.moe_layers * self.experts_s(tokens) * PS_PER_S

    def _exchange_ps(self, tokens: FloatArray) -> FloatArray:
        return self.model.moe_layers * self.exchange_s(tokens) * PS_PER_S

    def _head_ps(self, samples: FloatArray) -> FloatArray:
        model = self.model
        product = self.kernels.gemm(
            samples, model.vocab / self._tp, model.hidden, model.embedding_dtype
        )
        logits = samples * model.vocab
        gathered = self.collective_s("all_gather", self._tp, logits * STATE_BYTES)
        sampled = logits * SAMPLED_BYTES / (self.gpu.hbm_bytes_per_s * SMALL_BANDWIDTH)
        return np.asarray((product + gathered + sampled) * PS_PER_S)

    def _decode_s(self, rows: FloatArray, context: float, window: int = 0) -> FloatArray:
        """Attention of so many rows of one context in one layer."""
        if self._is_latent:
            return self.kernels.seconds("mla_decode", rows=rows, tokens=context, **self._latent)
        return self.kernels.seconds(
            "decode_attention", rows=rows, tokens=context, window=window, **self._heads
        )

    def _slope_ps(self, rows: FloatArray) -> FloatArray:
        """ps per KV token that `rows` rows read together, full layers."""
        low, high = (self._decode_s(rows, tokens) for tokens in (SHORT_CONTEXT, LONG_CONTEXT))
        read = np.maximum(rows, 1.0) * (LONG_CONTEXT - SHORT_CONTEXT)
        return np.asarray(self.model.full_layers * (np.maximum(0.0, high - low) / read) * PS_PER_S)

    def _fixed_ps(self, rows: FloatArray) -> FloatArray:
        """What is left at a short context, and the windowed layers, which see no more."""
        model = self.model
        one = self._decode_s(rows, SHORT_CONTEXT)
        slope = self._slope_ps(rows) / max(model.full_layers, 1)
        fixed = np.maximum(0.0, one * PS_PER_S - slope * rows * SHORT_CONTEXT)
        windowed = model.num_layers - model.full_layers
        total = model.full_layers * fixed
        if windowed:
            total = total + windowed * self._decode_s(rows, LONG_CONTEXT, model.window) * PS_PER_S
        return np.asarray(total)

    def _chunk_s(self, tokens: FloatArray, window: int) -> FloatArray:
        """Attention of one prompt in one layer."""
        if self._is_latent:
            return self.kernels.seconds("mla_prefill", rows=1.0, tokens=tokens, **self._latent)
        return self.kernels.seconds(
            "prefill_attention", rows=1.0, tokens=tokens, window=window, **self._heads
        )

    def _short_chunk_ps(self, tokens: FloatArray) -> FloatArray:
        """What one chunk of so many tokens takes beyond the rates of long ones."""
        full = self.model.full_layers
        one = full * self._chunk_s(tokens, 0) * PS_PER_S
        return np.asarray(np.maximum(0.0, one - (self._pair_ps * tokens + self._token_ps) * tokens))

    # One pass by its kernels ----------------------------------------------------------------------

    def kernels_s(
        self,
        rows: float,
        context: float,
        prompts: float = 0.0,
        prompt_tokens: float = 0.0,
        all_prompts: float = 0.0,
    ) -> float:
        """Seconds of one pass straight from the kernels: no tables, no host work.

        Every rank decodes `rows` rows of `context` tokens each; beside them the fullest rank has
        `prompts` whole prompts of `prompt_tokens` tokens, all ranks together `all_prompts`. Counts
        may be means. Decode attention is taken at `context` itself, not by the slope of a run.
        """
        own = np.array([rows + prompts * prompt_tokens])
        union = np.array([rows * self.num_ranks + all_prompts * prompt_tokens])
        parts = [*self._own_parts(own).values(), *self._union_parts(union, own).values()]
        total = sum(float(part[0]) for part in parts)
        total += float(self._head_ps(np.array([rows + prompts]))[0]) / PS_PER_S
        model = self.model
        full, windowed = model.full_layers, model.num_layers - model.full_layers
        if rows:
            seats = np.array([rows])
            total += full * float(self._decode_s(seats, context)[0])
            if windowed:
                total += windowed * float(self._decode_s(seats, context, model.window)[0])
        if prompts:
            tokens = np.array([prompt_tokens])
            total += prompts * full * float(self._chunk_s(tokens, 0)[0])
            if windowed:
                total += prompts * windowed * float(self._chunk_s(tokens, model.window)[0])
        return total

    # Reports --------------------------------------------------------------------------------------

    def with_layout(self, layout: Layout) -> MeasuredCost:
        """The same engine in another layout."""
        return MeasuredCost(
            self.model,
            self.gpu,
            layout,
            kernels=self.kernels,
            efficiency=self._efficiency,
            skew=self.skew,
            gpus_per_node=self._gpus_per_node,
            small_kernel_s=self._small_kernel_s,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "measured",
            "model": self.model.name,
            "gpu": self.gpu.name,
            "layout": str(self.layout),
            "skew": self.skew,
            "extrapolated": sorted(self.kernels.extrapolated),
            "efficiency": self._efficiency.as_dict(),
        }


def _latent_sizes(model: ModelSpec) -> tuple[int, ...]:
    ranks = model.hidden, model.q_lora_rank, model.kv_lora_rank
    return (*ranks, model.rope_dim, model.nope_dim, model.v_dim)


def _runs_flash_attention_2(gpu: GpuSpec) -> bool:
    """Hopper has FlashAttention 3 and data-centre Blackwell kernels of its own, which run decodes
    apart; Ampere, Ada and workstation Blackwell have neither."""
    linked = gpu.intra_bytes_per_s > gpu.host_bytes_per_s
    return not (linked and "fp8" in gpu.peak_flops)
