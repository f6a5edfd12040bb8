"""The profile: what `batchgen profile` measures, as versioned JSON; it measures nothing itself.

One JSON object, schema 2. Times are seconds of one call on one device; every list may hold any
number of points in any order.

    {"schema": 2, "kind": "batchgen-profile",
     "machine": {"device": "cpu", "name": "...", ...},      free form, copied into run.json
     "gemm": [{"m", "n", "k", "dtype", "seconds"}],          [m, k] x [k, n]
     "decode_attention": [{"heads", "kv_heads", "head_dim", "rows", "context", "seconds"}],
                                                             one layer, `context` tokens per row
     "prefill_attention": [{"heads", "kv_heads", "head_dim", "chunk", "start", "seconds"}],
                                                             one layer, one chunk after `start`
     "experts": [{"m", "hidden", "width", "num_experts", "top_k", "seconds"}],
                                                             optional: one sparse MLP as a whole,
                                                             router and grouping included
     "overheads": {"step_s", "decode": [[rows, seconds]], "prefill": [[tokens, seconds]],
                   "context": [[rows, seconds per KV token]]},
                                                             optional: beyond the operators, by
                                                             rising count; seconds may be negative
     "copies": {"host_bytes_per_s", "host_latency_s",
                "intra_bytes_per_s", "inter_bytes_per_s"},   only host_bytes_per_s is required
     "calibration": {"median_s", "least_s", "most_s", ...}}  optional: a small job, timed again and
                                                             again while the machine was measured

What overheads mean: `batchgen.cost.overheads`. Shapes to measure for a model: `gemm_shapes(model)`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchgen.cost.overheads import Overheads
from batchgen.errors import DataError, UserError
from batchgen.model import ModelSpec
from batchgen.paths import has_file

PROFILE_SCHEMA = 2
PROFILE_KIND = "batchgen-profile"
CURVES = ("context", "decode", "prefill")  # of the overheads


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmPoint:
    m: int
    n: int
    k: int
    dtype: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    heads: int
    kv_heads: int
    head_dim: int
    rows: int
    context: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    heads: int
    kv_heads: int
    head_dim: int
    chunk: int
    start: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPoint:
    m: int
    hidden: int
    width: int
    num_experts: int
    top_k: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    host_bytes_per_s: float
    host_latency_s: float = 0.0
    intra_bytes_per_s: float = 0.0
    inter_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How steady the machine was while it was measured: the least and the most that a small job
    took, in its median time. No prediction by the profile is surer than this."""

    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A checked profile; see the module docstring for units."""

    gemm: tuple[GemmPoint, ...]
    decode_attention: tuple[DecodePoint, ...]
    prefill_attention: tuple[PrefillPoint, ...]
    overheads: Overheads
    copies: Copies
    experts: tuple[ExpertPoint, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    spread: Spread | None = None
    path: str = ""


def gemm_shapes(model: ModelSpec) -> dict[str, tuple[int, int]]:
    """(n, k) of each linear layer of a dense or MoE GQA model, by module: what to measure."""
    queries = model.num_heads * model.head_dim
    keys = model.num_kv_heads * model.head_dim
    width = 2 if model.gated else 1
    shapes = {
        "qkv": (queries + 2 * keys, model.hidden),
        "o": (model.hidden, queries),
        "lm_head": (model.vocab, model.hidden),
    }
    if model.dense_layers:
        shapes["gate_up"] = (width * model.ffn, model.hidden)
        shapes["down"] = (model.hidden, model.ffn)
    if model.is_moe:
        shapes["router"] = (model.num_experts, model.hidden)
        shapes["expert_gate_up"] = (width * model.expert_ffn, model.hidden)
        shapes["expert_down"] = (model.hidden, model.expert_ffn)
    if model.shared_ffn:
        shapes["shared_gate_up"] = (width * model.shared_ffn, model.hidden)
        shapes["shared_down"] = (model.hidden, model.shared_ffn)
    return shapes


def load_profile(path: str | Path) -> Profile:
    """A profile from its JSON file. Raises UserError or DataError, each one line."""
    file = Path(path)
    has_file(file)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read profile '{file}': {error.strerror}",
            remedy="make one with `batchgen profile`",
        ) from None
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise DataError("not valid JSON", path=str(file), line=line) from None
    return parse_profile(data, str(file))


def parse_profile(data: Any, place: str = "profile") -> Profile:
    """A profile from parsed JSON; `place` is named in errors."""
    if not isinstance(data, dict) or data.get("kind") != PROFILE_KIND:
        raise DataError(
            "not a profile", path=place, field="kind", remedy="make one with `batchgen profile`"
        )
    if data.get("schema") != PROFILE_SCHEMA:
        raise DataError(
            f"schema {data.get('schema')!r} is not {PROFILE_SCHEMA}",
            path=place,
            field="schema",
            remedy="measure again with this version of `batchgen profile`",
        )
    check = _Check(place)
    return Profile(
        gemm=tuple(GemmPoint(**check.point(e, GemmPoint)) for e in check.points(data, "gemm")),
        decode_attention=tuple(
            DecodePoint(**check.point(e, DecodePoint))
            for e in check.points(data, "decode_attention")
        ),
        prefill_attention=tuple(
            PrefillPoint(**check.point(e, PrefillPoint))
            for e in check.points(data, "prefill_attention")
        ),
        experts=tuple(
            ExpertPoint(**check.point(e, ExpertPoint))
            for e in (check.points(data, "experts") if data.get("experts") else [])
        ),
        overheads=check.overheads(data.get("overheads", {})),
        copies=Copies(**check.rates(data, "copies", Copies, ("host_bytes_per_s",))),
        machine=dict(data.get("machine") or {}),
        spread=check.spread(data.get("calibration")),
        path=place,
    )


class _Check:
    """Field checks whose errors name file, list, index and field."""

    def __init__(self, place: str) -> None:
        self.place = place

    def points(self, data: dict[str, Any], name: str) -> list[tuple[str, Any]]:
        points = data.get(name)
        if not isinstance(points, list) or not points:
            raise DataError("must be a list with at least one point", path=self.place, field=name)
        return [(f"{name}[{index}]", point) for index, point in enumerate(points)]

    def point(self, entry: tuple[str, Any], kind: type) -> dict[str, Any]:
        where, point = entry
        if not isinstance(point, dict):
            raise DataError("must be an object", path=self.place, field=where)
        values: dict[str, Any] = {}
        for name in kind.__dataclass_fields__:  # type: ignore[attr-defined]
            value, lowest = point.get(name), 0 if name in ("start", "context") else 1
            if name == "dtype":
                if not isinstance(value, str):
                    raise self._bad(f"{where}.{name}", "must be a text", value)
            elif name == "seconds":
                value = self._number(f"{where}.{name}", value)
                if value <= 0:
                    raise self._bad(f"{where}.{name}", "must be positive", value)
            elif isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise self._bad(f"{where}.{name}", f"must be an integer >= {lowest}", value)
            values[name] = value
        return values

    def overheads(self, group: Any) -> Overheads:
        if not isinstance(group, dict):
            raise DataError("must be an object", path=self.place, field="overheads")
        self._no_extra("overheads", group, Overheads)
        step_s = self._number("overheads.step_s", group.get("step_s", 0.0))
        if step_s < 0:
            raise self._bad("overheads.step_s", "must not be negative", step_s)
        parts = {name: self._curve(f"overheads.{name}", group.get(name, [])) for name in CURVES}
        return Overheads(step_s=step_s, **parts)

    def _curve(self, where: str, points: Any) -> tuple[tuple[int, float], ...]:
        if not isinstance(points, list | tuple):
            raise self._bad(where, "must be a list", points)
        curve: list[tuple[int, float]] = []
        for index, point in enumerate(points):
            place = f"{where}[{index}]"
            if not isinstance(point, list | tuple) or len(point) != 2:
                raise self._bad(place, "must be a count and seconds", point)
            count, least = point[0], curve[-1][0] + 1 if curve else 1
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise self._bad(place, f"must begin with an integer >= {least}", count)
            curve.append((count, self._number(place, point[1])))
        return tuple(curve)

    def _no_extra(self, name: str, group: dict[str, Any], kind: type) -> None:
        known = kind.__dataclass_fields__  # type: ignore[attr-defined]
        for extra in group:
            if extra not in known:
                remedy = "known: " + ", ".join(known)
                raise DataError(
                    "is unknown", path=self.place, field=f"{name}.{extra}", remedy=remedy
                )

    def rates(
        self, data: dict[str, Any], name: str, kind: type, required: tuple[str, ...]
    ) -> dict[str, float]:
        group = data.get(name, {})
        if not isinstance(group, dict):
            raise DataError("must be an object", path=self.place, field=name)
        self._no_extra(name, group, kind)
        values = {key: self._number(f"{name}.{key}", value) for key, value in group.items()}
        for key, value in values.items():
            if value < 0:
                raise self._bad(f"{name}.{key}", "must not be negative", value)
        for key in required:
            if values.get(key, 0.0) <= 0:
                raise self._bad(f"{name}.{key}", "must be positive", group.get(key))
        return values

    def spread(self, group: Any) -> Spread | None:
        """None for a profile that does not say."""
        if group is None:
            return None
        if not isinstance(group, dict):
            raise DataError("must be an object", path=self.place, field="calibration")
        names = ("least_s", "median_s", "most_s")
        least, median, most = (self._number(f"calibration.{n}", group.get(n)) for n in names)
        if not 0 < least <= median <= most:
            rule = "must rise from least_s over median_s to most_s, all positive"
            raise self._bad("calibration", rule, [least, median, most])
        return Spread(least=least / median, most=most / median)

    def _number(self, where: str, value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self._bad(where, "must be a finite number", value)
        return float(value)

    def _bad(self, where: str, text: str, value: Any) -> DataError:
        return DataError(f"{text}, got {value!r}", path=self.place, field=where)
