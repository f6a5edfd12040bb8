"""What troubles are drawn from: the numbers of catalog/device_trouble.yaml, each with its source,
and changes of them by name. It draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Annotated

import msgspec

from batchgen.errors import UserError


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number and where it comes from."""

    value: Annotated[float, msgspec.Meta(ge=0)]
    source: Annotated[str, msgspec.Meta(min_length=1)]


Rates = Mapping[str, Mapping[str, float]]
"""Values by group and name."""

LARGEST = 1e9
POSITIVE = frozenset({"failures.mtbf_gpu_h", "spot.burst_nodes", "spot.most_nodes", "skew.step_s"})
"""Divisors."""
SHARES = frozenset(
    {"failures.node_share", "spread.outlier_share", "slow.bad_share", "slow.severe_share"}
)


def catalog() -> dict[str, dict[str, Rate]]:
    """The numbers with their sources, by group and name."""
    import yaml

    text = resources.files("batchgen.catalog").joinpath("device_trouble.yaml").read_text("utf-8")
    return msgspec.convert(yaml.safe_load(text), dict[str, dict[str, Rate]])


def rates(changes: Iterable[tuple[str, str]] = ()) -> dict[str, dict[str, float]]:
    """The catalog's values with ("group.name", "value") changed. Raises UserError."""
    known = catalog()
    found = {group: {name: one.value for name, one in of.items()} for group, of in known.items()}
    for key, text in changes:
        group, _, name = key.partition(".")
        if name not in found.get(group, {}):
            names = [f"{g}.{n}" for g, of in known.items() for n in of if group in (g, n)]
            remedy = f"known: {', '.join(names or known)}"
            raise UserError(f"--set {key}: no such number of device trouble", remedy=remedy)
        most = 1.0 if key in SHARES else LARGEST
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not (0 <= value <= most) or (value == 0 and key in POSITIVE):
            least = "above 0" if key in POSITIVE else "from 0"
            raise UserError(
                f"--set {key}={text[:40]}: not a number {least} to {most:g}", remedy="correct it"
            )
        found[group][name] = value
    for group, low, high in (
        ("spread", "outlier_low", "outlier_high"),
        ("slow", "gpu_low", "gpu_high"),
        ("slow", "node_low", "node_high"),
        ("slow", "severe_low", "severe_high"),
        ("host", "low", "high"),
    ):
        if found[group][low] > found[group][high]:
            raise UserError(f"{group}.{low} is above {group}.{high}", remedy="set both with --set")
    return found
