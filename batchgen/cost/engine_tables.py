"""Reads operator profiles of an engine (LLMServingSim's CSV files) from a folder. It times no pass.

    HARDWARE/MODEL/VARIANT/meta.yaml, tpN/{dense,per_sequence,attention,moe,skew_fit}.csv
    HARDWARE__MODEL__VARIANT__meta.yaml, HARDWARE__MODEL__VARIANT__tpN__dense.csv, ... (or .csv.gz)

Either way the meta file says which GPU and model they are of. Times in the files are microseconds
of one layer on one GPU of a tensor-parallel group.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.cost.api import FloatArray
from batchgen.cost.attention_grid import Attention, SkewTable, TwoGrids
from batchgen.errors import DataError, UserError
from batchgen.hardware import GpuSpec, gpu_names, load_gpu
from batchgen.model import ModelSpec, load_model, model_names
from batchgen.paths import has_file, kind_of
from batchgen.trace.lines import read_lines

META = "meta.yaml"
MOST_DEPTH = 5  # of a meta file: hardware, organisation, model, variant
DENSE = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "embedding", "final_layernorm")
MLP = ("gate_up_proj", "act_fn", "down_proj")
SEQUENCE = ("lm_head", "sampler")
GRID = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Microseconds over a count: linear between the points, the last slope beyond them."""

    counts: FloatArray
    times: FloatArray

    def at(self, counts: FloatArray) -> FloatArray:
        xs, ys = self.counts, self.times
        inside = np.interp(counts, xs, ys)
        if xs.size < 2:
            return inside
        # The last slope over the upper half, so that one noisy pair does not set it.
        half = int(np.searchsorted(xs, xs[-1] / 2))
        half = min(half, xs.size - 2)
        slope = max(0.0, (ys[-1] - ys[half]) / (xs[-1] - xs[half]))
        return np.asarray(inside + np.maximum(counts - xs[-1], 0.0) * slope)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertGrid:
    """Microseconds of one layer of experts over (tokens, touched experts), linear in both.

    `experts`: ascending; `times`: one curve over tokens for each.
    """

    experts: FloatArray
    curves: tuple[Curve, ...]

    def at(self, tokens: FloatArray, experts: FloatArray) -> FloatArray:
        columns = np.stack([curve.at(tokens) for curve in self.curves])
        if len(self.curves) == 1:
            return np.asarray(columns[0])
        low = np.clip(np.searchsorted(self.experts, experts) - 1, 0, self.experts.size - 2)
        width = self.experts[low + 1] - self.experts[low]
        # Fewer than the fewest measured take as long: reading one is mostly launches.
        weight = np.maximum((experts - self.experts[low]) / width, 0.0)
        first = np.take_along_axis(columns, low[None], 0)[0]
        second = np.take_along_axis(columns, low[None] + 1, 0)[0]
        return np.asarray(first + (second - first) * weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTables:
    """What was measured for one GPU, model and tensor-parallel degree."""

    folder: str
    name: str
    tp: int
    layers: Mapping[str, Curve]
    attention: Attention
    experts: ExpertGrid | None

    @property
    def has_skew(self) -> bool:
        return self.attention.skew is not None


def read_engine_tables(folder: str | Path, model: ModelSpec, gpu: GpuSpec, tp: int) -> EngineTables:
    """The tables of this model, GPU and tensor-parallel degree below `folder`.

    Raises UserError where there are none, with those that there are, and DataError for a bad file.
    """
    root = Path(folder)
    if kind_of(root) != "folder":
        raise UserError(f"profile {root} is no folder", remedy="check --profile", code="no_profile")
    found = [(path, _meta(path)) for path in _meta_files(root)]
    if not found:
        raise UserError(
            f"profile {root} has no {META}",
            remedy="give a folder of operator profiles",
            code="no_profile",
        )
    fitting = [
        (path, meta) for path, meta in found if _is_gpu(meta, gpu) and _is_model(meta, model)
    ]
    if not fitting:
        there = ", ".join(f"{meta['model']} on {meta['hardware']}" for _, meta in found[:5])
        raise UserError(
            f"profile {root}: none is of {model.name} on {gpu.name}",
            remedy=f"there are {there}",
            code="no_profile",
        )
    path, meta = fitting[0]
    return _read(root, path, meta, model, tp)


def profiled(folder: str | Path) -> list[tuple[str, str, int]]:
    """(GPU, model, tensor-parallel degree) of every profile below a folder whose GPU and model the
    catalog knows, sorted."""
    found = []
    for path in _meta_files(Path(folder)):
        meta = _meta(path)
        for model in model_names():
            for gpu in gpu_names():
                if not (_is_gpu(meta, load_gpu(gpu)) and _is_model(meta, load_model(model))):
                    continue
                degrees = meta.get("tp_degrees")
                found += [
                    (gpu, model, tp)
                    for tp in (degrees if isinstance(degrees, list) else [])
                    if _place(path, tp, "attention") is not None
                ]
    return sorted(found)


def _meta_files(root: Path) -> list[Path]:
    found: list[Path] = []
    for depth in range(MOST_DEPTH):
        found += root.glob("*/" * depth + f"*{META}")
    return sorted(path for path in found if path.name == META or path.name.endswith("__" + META))


def _meta(path: Path) -> dict[str, Any]:
    import yaml

    has_file(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DataError(f"cannot be read ({reason})", path=str(path)) from None
    if not isinstance(data, dict):
        raise DataError("is no mapping", path=str(path))
    for field in ("hardware", "model"):
        if not isinstance(data.get(field), str):
            raise DataError("is no text", path=str(path), field=field)
    return data


def _is_gpu(meta: Mapping[str, Any], gpu: GpuSpec) -> bool:
    try:
        return load_gpu(meta["hardware"]).name == gpu.name
    except UserError:
        return False


def _is_model(meta: Mapping[str, Any], model: ModelSpec) -> bool:
    """By the catalog's name; a release ("-Instruct-2507") has the sizes of its base."""
    name = meta["model"].rsplit("/", 1)[-1]
    try:
        return load_model(name).name == model.name
    except UserError:
        return _folded(name).startswith(_folded(model.name))


def _folded(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def _read(
    root: Path, path: Path, meta: Mapping[str, Any], model: ModelSpec, tp: int
) -> EngineTables:
    def needed(kind: str) -> Path:
        one = _place(path, tp, kind)
        if one is None:
            raise UserError(
                f"profile {root}: {meta['model']} on {meta['hardware']} has no {kind} of tp{tp}",
                remedy="choose another layout, or profile this one",
                code="no_profile",
            )
        return one

    names = [*DENSE, *(("qk_norm",) if model.qk_norm else ()), *(MLP if model.dense_layers else ())]
    layers = _curves(needed("dense"), "tokens", names)
    layers |= _curves(needed("per_sequence"), "sequences", SEQUENCE)
    skew = _skew(_place(path, tp, "skew_fit"), meta, tp, path)
    experts = None
    if model.is_moe:
        one = _place(path, 1, "moe")  # of one GPU; split by the cost model
        if one is None:
            raise UserError(f"profile {root}: {meta['model']} has no moe", code="no_profile")
        experts = _experts(one)
    attention = Attention(grid=_grid(needed("attention")), skew=skew)
    return EngineTables(
        folder=str(root),
        name=f"{meta['model']} on {meta['hardware']}",
        tp=tp,
        layers=layers,
        attention=attention,
        experts=experts,
    )


def _place(meta: Path, degree: int, kind: str) -> Path | None:
    """The file of a table, None where there is none."""
    if meta.name == META:
        stem = meta.parent / f"tp{degree}" / kind
    else:
        stem = meta.with_name(f"{meta.name.removesuffix(META)}tp{degree}__{kind}")
    for end in (".csv", ".csv.gz"):
        one = stem.with_name(stem.name + end)
        if one.is_file():
            return one
    return None


# -- one table each -------------------------------------------------------------------------------


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, the fields of `columns`) of a CSV file with a header."""
    where: list[int] | None = None
    for number, line in read_lines(path):
        if isinstance(line, DataError):
            raise line
        try:
            fields = next(csv.reader([line.decode("utf-8")]), [])
        except (UnicodeDecodeError, csv.Error):
            raise DataError("is no CSV", path=str(path), line=number) from None
        if where is None:
            missing = [name for name in columns if name not in fields]
            if missing:
                raise DataError("missing in the header", path=str(path), field=missing[0])
            where, width = [fields.index(name) for name in columns], len(fields)
            continue
        if len(fields) != width:
            raise DataError(
                f"{len(fields)} columns, the header has {width}", path=str(path), line=number
            )
        yield number, [fields[i] for i in where]


def _number(text: str, path: Path, line: int, field: str, *, least: float = 0.0) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (least <= value < 1e12):
        raise DataError(
            f"expected a number, got {text[:40]!r}", path=str(path), line=line, field=field
        )
    return value


def _count(text: str, path: Path, line: int, field: str) -> int:
    value = _number(text, path, line, field)
    if value != int(value):
        raise DataError(
            f"expected a count, got {text[:40]!r}", path=str(path), line=line, field=field
        )
    return int(value)


def _curves(path: Path, over: str, names: Sequence[str]) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = {name: {} for name in names}
    for line, (layer, count, time) in _rows(path, ("layer", over, "time_us")):
        if layer in points:
            at = _count(count, path, line, over)
            points[layer][at] = _number(time, path, line, "time_us")
    for name, found in points.items():
        if not found:
            raise DataError(f"no points of {name}", path=str(path), field="layer")
    return {name: _curve(found) for name, found in points.items()}


def _curve(points: Mapping[int, float]) -> Curve:
    ordered = sorted(points.items())
    return Curve(
        counts=np.array([count for count, _ in ordered], dtype=np.float64),
        times=np.array([time for _, time in ordered]),
    )


def _experts(path: Path) -> ExpertGrid:
    points: dict[int, dict[int, float]] = {}
    columns = ("tokens", "activated_experts", "time_us")
    for line, (tokens, experts, time) in _rows(path, columns):
        at = points.setdefault(_count(experts, path, line, columns[1]), {})
        at[_count(tokens, path, line, columns[0])] = _number(time, path, line, columns[2])
    if not points:
        raise DataError("no points", path=str(path))
    ordered = sorted(points.items())
    return ExpertGrid(
        experts=np.array([count for count, _ in ordered], dtype=np.float64),
        curves=tuple(_curve(found) for _, found in ordered),
    )


def _grid(path: Path) -> TwoGrids:
    points = {}
    for line, fields in _rows(path, GRID):
        sizes = [
            _count(text, path, line, name) for text, name in zip(fields, GRID[:4], strict=False)
        ]
        point = (sizes[0], sizes[1], sizes[2], sizes[3])
        points[point] = _number(fields[4], path, line, GRID[4])
    try:
        return TwoGrids(points)
    except ValueError as error:
        raise DataError(str(error), path=str(path)) from None


def _skew(path: Path | None, meta: Mapping[str, Any], tp: int, place: Path) -> SkewTable | None:
    """None where the meta file says that skew was not measured: a table beside it is a leftover of
    another machine."""
    fit = meta.get("skew_fit")
    if path is None or not isinstance(fit, dict) or fit.get("enabled") is not True:
        return None
    try:
        axes = fit["bucket_axes"]
        names = ("n", "skew_rate", "kv_big", "kp")
        ends = [np.array([float(end) for end in axes[f"{name}_bins"][1:]]) for name in names]
        labels = [{str(one): i for i, one in enumerate(axes[f"{name}_labels"])} for name in names]
        default = float(fit["per_tp"][tp]["alpha_default"])
        if any(len(one) != len(end) for one, end in zip(labels, ends, strict=True)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataError("has no buckets of skew", path=str(place), field="skew_fit") from None
    columns = ("pc", "n_label", "skew_rate_label", "kv_big_label", "kp_label", "alpha")
    found: dict[tuple[int, ...], float] = {}
    for line, fields in _rows(path, columns):
        try:
            where = [one[text] for one, text in zip(labels, fields[1:5], strict=True)]
        except KeyError as error:
            raise DataError(f"unknown bucket {error}", path=str(path), line=line) from None
        alpha = _number(fields[5], path, line, "alpha", least=-1e12)
        # Below 0 where a jump of the kernel lies between the mean and the longest; fits of few
        # points, between times that are nearly the same, lie anywhere.
        found[_count(fields[0], path, line, "pc"), *where] = min(max(alpha, -1.0), 1.0)
    chunks = sorted({key[0] for key in found} | {0})
    alphas = np.full((len(chunks), *(len(end) for end in ends)), default)
    for (chunk, *where), alpha in found.items():
        alphas[(chunks.index(chunk), *where)] = alpha
    return SkewTable(
        chunk=np.array(chunks, dtype=np.float64),
        rows=ends[0],
        rate=ends[1],
        longest=ends[2],
        history=ends[3],
        alpha=alphas,
    )
