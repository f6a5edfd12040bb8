"""A cost model from a measured profile (`CostModel`). It measures nothing and simulates no links.

Linear layers are interpolated in m for their shape; attention is fitted as c + slope * context per
row count and as a + b * pairs + c * reads + d * tokens per chunk, so that times stay affine in the
context with an integer slope.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from batchgen.cost.api import PS_PER_S, FloatArray, Link
from batchgen.cost.experts import touched_experts
from batchgen.cost.fit import Curve, nonnegative_fit
from batchgen.cost.profile_schema import (
    DecodePoint,
    PrefillPoint,
    Profile,
    gemm_shapes,
    load_profile,
    parse_profile,
)
from batchgen.cost.tabled import ChunkRates, CopyRates, TabledCost, per_row
from batchgen.errors import UserError
from batchgen.layout import Layout
from batchgen.model import ModelSpec

__all__ = ["ProfiledCost", "gemm_shapes", "load_profile", "parse_profile"]

_UNKNOWN_LINK_LATENCY_S = 10e-6  # used beside a link rate, as for the machines of the catalog


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
        self._experts = _expert_curve(profile, model)
        self._decode_constant, self._decode_slope = _fit_decode(profile, model)
        overheads, copies = profile.overheads, profile.copies
        layers = model.num_layers
        start_s, pair_s, read_s, token_s = _fit_prefill(profile, model)
        full, windowed = model.full_layers, layers - model.full_layers
        host = PS_PER_S * model.kv_bytes_per_token / copies.host_bytes_per_s
        intra, inter = (
            PS_PER_S * model.kv_bytes_per_token / (rate or copies.host_bytes_per_s)
            for rate in (copies.intra_bytes_per_s, copies.inter_bytes_per_s)
        )
        latency = PS_PER_S * (copies.host_latency_s or _UNKNOWN_LINK_LATENCY_S)
        per_token: dict[Link, float] = {"host": host, "intra": intra, "inter": inter}
        fixed: dict[Link, float] = {"host": latency, "intra": latency, "inter": latency}
        super().__init__(
            model,
            layout,
            own=self._own_ps,
            union=self._experts_ps,
            head=self._head_ps,
            slope=per_row(self._slope_ps),
            fixed=per_row(self._decode_fixed_ps),
            step_ps=round(PS_PER_S * overheads.step_s),
            chunks=ChunkRates(
                pair=PS_PER_S * full * pair_s,
                read=PS_PER_S * full * read_s,
                token=PS_PER_S * layers * token_s,
                window_pair=PS_PER_S * windowed * pair_s,
                window_width=2 * model.window,
                step_ps=round(PS_PER_S * layers * start_s),
            ),
            chunk_overhead=lambda tokens: PS_PER_S * overheads.prefill_s(tokens),
            copies=CopyRates(per_token=per_token, fixed=fixed, switch_ps=0),
        )

    # Modules, in ps ------------------------------------------------------------------------------

    def _own_ps(self, tokens: FloatArray) -> FloatArray:
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
        return PS_PER_S * projections + PS_PER_S * dense

    def _experts_ps(self, tokens: FloatArray) -> FloatArray:
        """As measured, or every touched expert on its mean share of the tokens."""
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

    def _slope_ps(self, rows: int) -> float:
        measured_s = self.model.full_layers * self._decode_slope.at(rows)
        extra_s = float(self.profile.overheads.context_s(np.array([float(rows)]))[0])
        return PS_PER_S * max(0.0, measured_s + extra_s)

    def _decode_fixed_ps(self, rows: int) -> float:
        model = self.model
        windowed = model.num_layers - model.full_layers
        seconds = model.num_layers * self._decode_constant.at(rows)
        seconds += windowed * rows * model.window * self._decode_slope.at(rows)
        return PS_PER_S * (seconds + self._decode_overhead_s(rows))

    def _decode_overhead_s(self, rows: int) -> float:
        return float(self.profile.overheads.decode_s(np.array([float(rows)]))[0])

    # Reports --------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "profile",
            "model": self.model.name,
            "layout": str(self.layout),
            "profile": self.profile.path,
            "machine": self.profile.machine,
            "spread": None if self.profile.spread is None else asdict(self.profile.spread),
        }


def _dtype_of(profile: Profile, model: ModelSpec, module: str) -> str:
    """The dtype whose points stand for a module: its own if measured, else the first measured."""
    own = model.weight_dtype
    if module.startswith("expert"):
        own = model.expert_dtype
    elif module in ("lm_head", "router"):
        own = model.embedding_dtype
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


def _expert_curve(profile: Profile, model: ModelSpec) -> Curve | None:
    """Seconds over tokens of one sparse MLP of this very shape, if it was measured."""
    shape = (model.hidden, model.expert_ffn, model.num_experts, model.top_k)
    points = [
        point
        for point in profile.experts
        if (point.hidden, point.width, point.num_experts, point.top_k) == shape
    ]
    if not points:
        return None
    return Curve([point.m for point in points], [point.seconds for point in points])


def _nearest_heads(
    points: tuple[DecodePoint, ...] | tuple[PrefillPoint, ...], model: ModelSpec
) -> tuple[tuple[int, int, int], float]:
    """The measured head shape nearest to the model's and the factor of work between them."""
    wanted = (model.num_heads, model.num_kv_heads, model.head_dim)
    logs = [math.log(size) for size in wanted]
    measured = sorted({(point.heads, point.kv_heads, point.head_dim) for point in points})
    nearest = min(measured, key=lambda shape: math.dist(logs, [math.log(size) for size in shape]))
    return nearest, wanted[0] * wanted[2] / (nearest[0] * nearest[2])


def _fit_decode(profile: Profile, model: ModelSpec) -> tuple[Curve, Curve]:
    """Seconds of one layer per row count: the constant, and the slope per KV token read."""
    shape, factor = _nearest_heads(profile.decode_attention, model)
    by_rows: dict[int, list[DecodePoint]] = {}
    for point in profile.decode_attention:
        if (point.heads, point.kv_heads, point.head_dim) == shape:
            by_rows.setdefault(point.rows, []).append(point)
    rows_seen, constants, slopes = [], [], []
    for rows, points in sorted(by_rows.items()):
        total = np.array([float(point.context * rows) for point in points])
        seconds = np.array([point.seconds for point in points])
        if len(set(total.tolist())) < 2:  # one context cannot tell the two apart
            constant, slope = 0.0, float((seconds / np.maximum(total, 1.0)).mean())
        else:
            constant, slope = nonnegative_fit(np.stack([np.ones_like(total), total], 1), seconds)
        rows_seen.append(float(rows))
        constants.append(float(constant))
        slopes.append(factor * float(slope))
    return Curve(rows_seen, constants), _Level(rows_seen, slopes)


class _Level(Curve):
    """Piecewise linear as measured, constant beyond the points: a rate, not a time."""

    def __init__(self, xs: list[float], ys: list[float]) -> None:
        self.xs, self.ys, self.tail = np.array(xs), np.array(ys), 0.0


def _fit_prefill(profile: Profile, model: ModelSpec) -> tuple[float, float, float, float]:
    """Seconds of one layer: per chunk, per pair, per earlier token, per token."""
    shape, factor = _nearest_heads(profile.prefill_attention, model)
    points = [
        point
        for point in profile.prefill_attention
        if (point.heads, point.kv_heads, point.head_dim) == shape
    ]
    chunk = np.array([float(point.chunk) for point in points])
    start = np.array([float(point.start) for point in points])
    columns = np.stack([np.ones_like(chunk), (start + chunk) ** 2 - start**2, start, chunk], 1)
    fitted = nonnegative_fit(columns, np.array([point.seconds for point in points]))
    constant, *rates = (float(value) for value in fitted)
    return (constant, *(factor * rate for rate in rates))  # type: ignore[return-value]
