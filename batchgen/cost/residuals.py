"""How far simulations like this one were from what was measured: data of benchmarks, by kind of
run. It measures nothing and guesses nothing: without a benchmark it says so.

`batchgen/catalog/residuals.json` is written by `python benchmarks/residuals.py` from the results of
`bench costs`, `bench engines` and `bench published`, as far as there are some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

SOURCES = ("bench engines", "bench published", "bench costs")
"""The nearest to a whole run first: real engines, published points of operation, kernels."""
KEYS = ("costs", "cluster", "gpu", "engine", "model_kind")
"""What a row of the data may be restricted to; absent or "all": it is not."""
ANY = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What decides how near a run is to what was measured.

    costs: "roofline", "measured", "profile", "engine profile". cluster: machines with constants of
    their own, "none" without. engine: the policy, which some real engine may bear the name of.
    model_kind: "dense", "moe" or "latent". changed: constants or places on the host are the user's,
    or weights come in an order of the system's own, which nobody measured. guessed: some kernels
    were not measured on the GPU.
    """

    costs: str
    cluster: str = "none"
    gpu: str
    engine: str
    model_kind: str
    several_gpus: bool = False
    changed: bool = False
    guessed: bool = False
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """|predicted / measured - 1| of `what`: median and 90th percentile over `count` points, with
    the benchmark and its file of results. None: nothing was measured, and `what` says so. `least`
    and `most`: those of the kind, a part of the error that is known whatever was benchmarked."""

    what: str
    median: float | None = None
    p90: float | None = None
    count: int = 0
    source: str = ""
    result: str = ""
    least: float | None = None
    most: float | None = None


def spread_of(errors: Sequence[float]) -> dict[str, Any]:
    """Absolute errors as a row of results tells them: count, median, 90th percentile."""
    import numpy as np

    middle, high = np.quantile(np.abs(errors), (0.5, 0.9)).tolist()
    return {"count": len(errors), "median": middle, "p90": high}


@cache
def load() -> list[dict[str, Any]]:
    """All rows of the catalog; none when the file is missing."""
    file = resources.files("batchgen.catalog").joinpath("residuals.json")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def find(kind: Kind, rows: Sequence[Mapping[str, Any]] | None = None) -> Residual:
    """The residual of runs of this kind, from the nearest benchmark that has one.

    Of a benchmark's rows that apply the most particular counts (most of `KEYS` named), and among
    these the worst; of `bench costs` the worst kernel that such a run has.
    """
    found = _benchmarked(kind, load() if rows is None else rows)
    return replace(found, least=kind.least, most=kind.most)


def _benchmarked(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> Residual:
    if kind.changed:
        return Residual(what="none measured of this kind of run (its constants, places, copies)")
    for source in SOURCES:
        found = [row for row in rows if row["source"] == source and _applies(row, kind)]
        if found:
            most = max(map(_particular, found))
            worst = max(
                (row for row in found if _particular(row) == most),
                key=lambda row: (float(row["p90"]), str(row["what"])),
            )
            return Residual(
                what=worst["what"],
                median=worst["median"],
                p90=worst["p90"],
                count=worst["count"],
                source=source,
                result=worst["result"],
            )
    name = {
        "roofline": "catalog roofline, not validated",
        "measured": "measured kernels",
        "profile": "profile; 'batchgen validate prediction' measures it",
    }.get(kind.costs, kind.costs)
    return Residual(what=f"none measured of this kind of run ({name})")


def _applies(row: Mapping[str, Any], kind: Kind) -> bool:
    if any(row.get(key, ANY) not in (ANY, getattr(kind, key)) for key in KEYS):
        return False
    if "guessed" in row and bool(row["guessed"]) != kind.guessed:
        return False
    return "kernel" not in row or row["kernel"] in kernels(kind)


def _particular(row: Mapping[str, Any]) -> int:
    return sum(row.get(key, ANY) != ANY for key in KEYS)


def kernels(kind: Kind) -> tuple[str, ...]:
    """Kernels of `bench costs` that passes of such a run consist of."""
    attention = ("mla_decode", "mla_prefill")
    if kind.model_kind != "latent":
        attention = ("decode_attention", "prefill_attention")
    experts = () if kind.model_kind == "dense" else ("experts",)
    return ("gemm", *attention, *experts, *(("collectives",) if kind.several_gpus else ()))
