"""A cost model from a measured profile (`CostModel`). It measures nothing and simulates no links.

Linear layers are interpolated in m for their shape; attention is fitted as c + slope * context per
row count and as a + b * pairs + c * reads + d * tokens per chunk, so that times stay affine in the
context with an integer slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, FloatArray, IntArray, Link, PassLoad
from batchgen.cost.experts import touched_experts
from batchgen.cost.fit import Curve, Level, nonnegative_fit
from batchgen.cost.profile_schema import (
    DecodePoint,
    Profile,
    gemm_shapes,
    load_profile,
    parse_profile,
)
from batchgen.cost.tabled import ChunkRates, CopyRates, TabledCost
from batchgen.errors import UserError
from batchgen.layout import Layout
from batchgen.model import ModelSpec

__all__ = ["ProfiledCost", "gemm_shapes", "load_profile", "parse_profile"]


# The profile names dtypes as torch does.
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class ProfiledCost(TabledCost):
    """`CostModel` of a one-GPU engine on the machine that was measured.

    Raises UserError for layouts that split a row (collectives are not in a profile) and for latent
    attention.
    """

    def __init__(self, model: ModelSpec, profile: Profile, layout: Layout) -> None:
        if layout.gpus_per_engine != 1:
            raise UserError(
                f"profile {profile.path}: layout {layout} has engines of "
                f"{layout.gpus_per_engine} GPUs, and a profile holds one device",
                remedy="use --layout dpN, or leave --profile out",
            )
        if model.attention == "mla":
            raise UserError(
                f"profile {profile.path}: {model.name} has latent attention, which profiles "
                "do not hold",
                remedy="leave --profile out",
            )
        self.profile = profile
        self._shapes = {
            name: _gemm_curve(profile, n, k, _dtype_of(profile, model, name))
            for name, (n, k) in gemm_shapes(model).items()
        }
        # A sparse MLP measured as a whole holds its router and the unevenness of its experts.
        measured = {(point.n, point.k) for point in profile.gemm}
        same = model.is_moe and gemm_shapes(model)["expert_gate_up"] in measured
        self._experts: Curve | None = None
        if same and profile.experts:
            points = profile.experts
            self._experts = Curve([p.m for p in points], [p.seconds for p in points])
        self._decode_constant, self._decode_slope = _fit_decode(profile, model)
        self._rest = _fit_overhead(profile)
        layers = model.num_layers
        start_s, pair_s, read_s, token_s = _fit_prefill(profile, model)
        full, windowed = model.full_layers, layers - model.full_layers
        latency_s, byte_s = _fit_copies(profile)
        # Only the host link is measured; other links are taken to be no slower.
        per_token = PS_PER_S * model.kv_bytes_per_token * byte_s
        links: tuple[Link, ...] = ("host", "intra", "inter")
        rest = self._rest
        super().__init__(
            model,
            layout,
            own=self._own_ps,
            union=self._experts_ps,
            head=self._head_ps,
            slope=lambda rows: PS_PER_S * full * self._decode_slope.at(rows),
            fixed=self._decode_fixed_ps,
            step_ps=round(PS_PER_S * rest.step_s),
            chunks=ChunkRates(
                pair=PS_PER_S * full * pair_s,
                read=PS_PER_S * full * read_s,
                token=PS_PER_S * (layers * (token_s + rest.chunk_layer[1]) + rest.chunk_step[1]),
                window_pair=PS_PER_S * windowed * pair_s,
                window_width=2 * model.window,
                step_ps=round(
                    PS_PER_S * (layers * (start_s + rest.chunk_layer[0]) + rest.chunk_step[0])
                ),
            ),
            copies=CopyRates(
                per_token=dict.fromkeys(links, per_token),
                fixed=dict.fromkeys(links, PS_PER_S * latency_s),
                switch_ps=0,
            ),
        )

    # Modules, in ps ------------------------------------------------------------------------------

    def _modules_ps(self, tokens: FloatArray) -> dict[str, FloatArray]:
        model, curve = self.model, self._shapes
        projections = model.num_layers * (curve["qkv"](tokens) + curve["o"](tokens))
        dense = np.zeros_like(tokens)
        if model.dense_layers:
            dense = model.dense_layers * (curve["gate_up"](tokens) + curve["down"](tokens))
        if model.is_moe and self._experts is None:
            dense = dense + model.moe_layers * curve["router"](tokens)
        if model.shared_ffn:
            shared = curve["shared_gate_up"](tokens) + curve["shared_down"](tokens)
            dense = dense + model.moe_layers * shared
        overhead = np.full_like(tokens, model.num_layers * self._rest.layer_s)
        return {
            "projections": PS_PER_S * projections,
            "dense": PS_PER_S * dense,
            "overhead": PS_PER_S * overhead,
        }

    def _own_ps(self, tokens: FloatArray) -> FloatArray:
        parts = self._modules_ps(tokens)
        return parts["projections"] + parts["dense"] + parts["overhead"]

    def _experts_ps(self, tokens: FloatArray) -> FloatArray:
        """As measured for this model, or every touched expert on its mean share of the tokens."""
        model = self.model
        if not model.is_moe:
            return np.zeros_like(tokens)
        if self._experts is not None:
            return PS_PER_S * model.moe_layers * self._experts(tokens)
        touched = touched_experts(tokens, model.num_experts, model.top_k)
        share = tokens * model.top_k / np.maximum(touched, 1e-9)
        pair = self._shapes["expert_gate_up"](share) + self._shapes["expert_down"](share)
        return PS_PER_S * model.moe_layers * touched * pair

    def _head_ps(self, samples: FloatArray) -> FloatArray:
        return PS_PER_S * self._shapes["lm_head"](samples)

    def _decode_fixed_ps(self, rows: int) -> float:
        model = self.model
        windowed = model.num_layers - model.full_layers
        seconds = model.num_layers * self._decode_constant.at(rows)
        seconds += windowed * rows * model.window * self._decode_slope.at(rows)
        seconds += model.num_layers * self._rest.decode_layer.at(rows)
        return PS_PER_S * (seconds + self._rest.decode_step.at(rows))

    # Reports --------------------------------------------------------------------------------------

    def breakdown(self, load: PassLoad) -> dict[str, IntArray]:
        tokens = load.decodes + load.chunk_tokens
        busy = tokens > 0
        modules = self._modules_ps(tokens.astype(np.float64))
        parts = {
            name: np.rint(np.where(busy, part, 0.0).max(axis=0)).astype(np.int64)
            for name, part in modules.items()
        }
        union = tokens.sum(axis=0)
        parts["experts"] = self._union.take(union)
        parts["overhead"] += np.where(union > 0, self._step_ps, 0)
        parts["overhead"] += np.where(load.chunk_tokens.any(axis=0), self._chunks.step_ps, 0)
        parts["collectives"] = np.zeros_like(union)
        return {**parts, **self.attention_parts(load)}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "profile",
            "model": self.model.name,
            "layout": str(self.layout),
            "profile": self.profile.path,
            "machine": self.profile.machine,
        }


def _dtype_of(profile: Profile, model: ModelSpec, module: str) -> str:
    """The dtype whose points stand for a module: its own if measured, else the first measured."""
    own = model.weight_dtype
    if module.startswith("expert"):
        own = model.expert_dtype
    elif module in ("lm_head", "router"):
        own = model.embedding_dtype
    own = _TORCH_NAMES.get(own, own)
    measured = [point.dtype for point in profile.gemm]
    return own if own in measured else measured[0]


def _gemm_curve(profile: Profile, n: int, k: int, dtype: str) -> Curve:
    """Seconds over m for one (n, k); if it was not measured, the nearest shape scaled by area."""
    usable = [point for point in profile.gemm if point.dtype == dtype]
    wanted = (math.log(n), math.log(k))
    nearest = min(
        sorted({(point.n, point.k) for point in usable}),
        key=lambda shape: math.dist(wanted, (math.log(shape[0]), math.log(shape[1]))),
    )
    scale = n * k / (nearest[0] * nearest[1])
    points = [point for point in usable if (point.n, point.k) == nearest]
    return Curve([point.m for point in points], [scale * point.seconds for point in points])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Overhead:
    """What passes cost beyond their operators: a common floor, and the rest by kind of work.

    `chunk_layer` and `chunk_step` are (per pass with prefill, per prefilled token). In a mixed pass
    both kinds add up, as their segments are handled apart.
    """

    layer_s: float
    step_s: float
    decode_layer: Curve
    decode_step: Curve
    chunk_layer: tuple[float, float]
    chunk_step: tuple[float, float]


def _fit_overhead(profile: Profile) -> _Overhead:
    layer_s = min(point.layer_s for point in profile.overhead)
    step_s = min(point.step_s for point in profile.overhead)
    decode = [point for point in profile.overhead if point.kind == "decode"]
    prefill = [point for point in profile.overhead if point.kind == "prefill"]

    def curve(rest: list[float]) -> Curve:
        return Curve([0.0, *(float(point.tokens) for point in decode)], [0.0, *rest])

    def line(rest: list[float]) -> tuple[float, float]:
        if not prefill:
            return 0.0, 0.0
        tokens = np.array([float(point.tokens) for point in prefill])
        columns = np.stack([np.ones_like(tokens), tokens], 1)
        # The floor keeps the relative error of points that are almost zero from ruling the fit.
        target = np.maximum(np.array(rest), 1e-7)
        constant, slope = nonnegative_fit(columns, target)
        return float(constant), float(slope)

    return _Overhead(
        layer_s=layer_s,
        step_s=step_s,
        decode_layer=curve([point.layer_s - layer_s for point in decode]),
        decode_step=curve([point.step_s - step_s for point in decode]),
        chunk_layer=line([point.layer_s - layer_s for point in prefill]),
        chunk_step=line([point.step_s - step_s for point in prefill]),
    )


def _fit_copies(profile: Profile) -> tuple[float, float]:
    """(seconds per copy, seconds per byte) of the slower direction."""
    directions: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in profile.copies:
        pair = (float(point.bytes), point.seconds)
        directions.setdefault((point.source, point.target), []).append(pair)
    fits = []
    for points in directions.values():
        sizes, seconds = (np.array(column) for column in zip(*points, strict=True))
        if len(set(sizes.tolist())) < 2:
            fits.append((float((seconds / sizes).mean()), 0.0))
            continue
        columns = np.stack([np.ones_like(sizes), sizes], 1)
        fixed, rate = nonnegative_fit(columns, seconds)
        fits.append((float(rate), float(fixed)))
    byte_s, latency_s = max(fits)
    return latency_s, byte_s


def _work_factor(profile: Profile, model: ModelSpec) -> float:
    """Score work of the model per measured score work: heads times head size."""
    heads = profile.heads
    return (model.num_heads * model.head_dim) / (heads.num_heads * heads.head_dim)


def _fit_decode(profile: Profile, model: ModelSpec) -> tuple[Curve, Curve]:
    """Seconds of one layer per row count: the constant, and the slope per KV token read."""
    factor = _work_factor(profile, model)
    by_rows: dict[int, list[DecodePoint]] = {}
    for point in profile.decode_attention:
        by_rows.setdefault(point.rows, []).append(point)
    rows_seen, constants, slopes = [], [], []
    for rows, points in sorted(by_rows.items()):
        total = np.array([float(point.context * rows) for point in points])
        seconds = np.array([point.seconds for point in points])
        if len(set(total.tolist())) < 2:  # one context cannot tell the two apart
            constant, slope = 0.0, float((seconds / total).mean())
        else:
            constant, slope = nonnegative_fit(np.stack([np.ones_like(total), total], 1), seconds)
        rows_seen.append(float(rows))
        constants.append(float(constant))
        slopes.append(factor * float(slope))
    return Curve(rows_seen, constants), Level(rows_seen, slopes)


def _fit_prefill(profile: Profile, model: ModelSpec) -> tuple[float, float, float, float]:
    """Seconds of one layer: per chunk, per pair, per earlier token, per token."""
    points = profile.prefill_attention
    chunk = np.array([float(point.chunk) for point in points])
    start = np.array([float(point.start) for point in points])
    columns = np.stack([np.ones_like(chunk), (start + chunk) ** 2 - start**2, start, chunk], 1)
    fitted = nonnegative_fit(columns, np.array([point.seconds for point in points]))
    constant, pair, read, token = (float(value) for value in fitted)
    factor = _work_factor(profile, model)
    return constant, factor * pair, factor * read, factor * token
