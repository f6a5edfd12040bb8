"""The profile: what `batchgen profile` measures, as versioned JSON; it measures nothing itself.

One JSON object, schema 1. Times are seconds of one call on one device; lists may hold any number of
points in any order. Other keys ("copies" as rates, "passes") are kept for people and not read.

    {"kind": "batchgen-profile", "schema": 1,
     "machine": {"device", "dtype", ...},              free form, copied into run.json
     "model": {"num_heads", "num_kv_heads", "head_dim", ...},  what the attention tables belong to
     "gemm": [{"m", "n", "k", "dtype", "seconds"}],    [m, k] x [k, n]
     "decode_attention": [{"rows", "context", "seconds"}],   one layer, `context` tokens per row
     "prefill_attention": [{"chunk", "start", "seconds"}],   one layer, one chunk after `start`
     "experts": [{"m", "seconds"}],                    optional: one sparse MLP with its router
     "overhead": [{"kind", "tokens", "layer_s", "step_s"}],  decode or prefill pass of `tokens`:
                                                       the rest per layer and per pass
     "copies": [{"from", "to", "bytes", "seconds"}]}   between "hbm" and "host"
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from batchgen.errors import DataError, UserError
from batchgen.model import ModelSpec

PROFILE_SCHEMA = 1
PROFILE_KIND = "batchgen-profile"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmPoint:
    m: int
    n: int
    k: int
    dtype: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    rows: int
    context: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    chunk: int
    start: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPoint:
    m: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadPoint:
    kind: str
    tokens: int
    layer_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPoint:
    source: str
    target: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """The attention geometry that was measured."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A checked profile; see the module docstring for units."""

    heads: HeadShape
    gemm: tuple[GemmPoint, ...]
    decode_attention: tuple[DecodePoint, ...]
    prefill_attention: tuple[PrefillPoint, ...]
    experts: tuple[ExpertPoint, ...]
    overhead: tuple[OverheadPoint, ...]
    copies: tuple[CopyPoint, ...]
    machine: dict[str, Any] = field(default_factory=dict)
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
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read profile '{file}': {error.strerror}",
            remedy="make one with `batchgen profile`",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
        heads=HeadShape(**check.point(("model", data.get("model")), HeadShape)),
        gemm=tuple(check.table(data, "gemm", GemmPoint)),
        decode_attention=tuple(check.table(data, "decode_attention", DecodePoint)),
        prefill_attention=tuple(check.table(data, "prefill_attention", PrefillPoint)),
        experts=tuple(check.table(data, "experts", ExpertPoint, optional=True)),
        overhead=tuple(check.table(data, "overhead", OverheadPoint)),
        copies=tuple(check.table(data, "copies", CopyPoint)),
        machine=dict(data.get("machine") or {}),
        path=place,
    )


# Fields that are not integers >= 1; "from" is a keyword and gets another name here.
_TEXTS = {"dtype": (), "kind": ("decode", "prefill"), "source": (), "target": ()}
_NAMES = {"source": "from", "target": "to"}
_SECONDS = ("seconds",)
_REST_SECONDS = ("layer_s", "step_s")  # may be 0
_FROM_ZERO = ("start",)


class _Check:
    """Field checks whose errors name file, table, index and field."""

    def __init__(self, place: str) -> None:
        self.place = place

    def table(
        self, data: dict[str, Any], name: str, kind: type[T], *, optional: bool = False
    ) -> Iterator[T]:
        points = data.get(name, [] if optional else None)
        if not isinstance(points, list) or not (points or optional):
            raise DataError("must be a list with at least one point", path=self.place, field=name)
        for index, point in enumerate(points):
            yield kind(**self.point((f"{name}[{index}]", point), kind))

    def point(self, entry: tuple[str, Any], kind: type) -> dict[str, Any]:
        """The fields of `kind` from one JSON object."""
        where, point = entry
        if not isinstance(point, dict):
            raise DataError("must be an object", path=self.place, field=where)
        return {
            item.name: self._value(f"{where}.{_NAMES.get(item.name, item.name)}", item.name, point)
            for item in fields(kind)
        }

    def _value(self, where: str, name: str, point: dict[str, Any]) -> Any:
        value = point.get(_NAMES.get(name, name))
        if name in _TEXTS:
            allowed = _TEXTS[name]
            if not isinstance(value, str) or (allowed and value not in allowed):
                what = "must be one of " + ", ".join(allowed) if allowed else "must be a text"
                raise self._bad(where, what, value)
            return value
        if name in _SECONDS or name in _REST_SECONDS:
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
            ):
                raise self._bad(where, "must be a finite number", value)
            if value < 0 or (value == 0 and name in _SECONDS):
                raise self._bad(where, "must be positive", value)
            return float(value)
        lowest = 0 if name in _FROM_ZERO else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise self._bad(where, f"must be an integer >= {lowest}", value)
        return value

    def _bad(self, where: str, text: str, value: Any) -> DataError:
        return DataError(f"{text}, got {value!r}", path=self.place, field=where)
