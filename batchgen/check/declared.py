"""What a part declares, looked at without running it. Nothing is inferred from what it overrides;
what it overrides in vain is said.
"""

from __future__ import annotations

import dataclasses
import inspect

from batchgen.oneline import shown
from batchgen.policy import base
from batchgen.policy.base import CHANGES, SLOTS, Part
from batchgen.policy.presets import CAPABILITIES

BASES: dict[str, type[Part]] = {
    "order": base.OrderPart,
    "admission": base.AdmissionPart,
    "batching": base.BatchingPart,
    "phase": base.PhasePart,
    "memory": base.MemoryPart,
    "placement": base.PlacementPart,
    "tail": base.TailPart,
    "predictor": base.PredictorPart,
    "recovery": base.RecoveryPart,
}
TYPES = ("int", "float", "bool", "str")
UNASKED: dict[str, dict[str, tuple[str, object]]] = {
    "order": {
        "key": ("keyed", True),
        "lane": ("shares", None),
        "arrange": ("plans", True),
        "end": ("two_ended", True),
    },
    "admission": {"lease": ("reserves", True), "room_for": ("sees_row", True)},
    "batching": {"pace": ("paces", True)},
    "phase": {
        "starts_prefill": ("phases", True),
        "gathered": ("gathers", True),
        "takes": ("pauses", True),
    },
    "memory": {"rank_victim": ("newest", False)},
    "tail": {"layout": ("partitions", True)},
    "predictor": {"on_completion": ("learns", True)},
}
"""slot -> method -> the declaration without which it is never asked."""

NEEDED: dict[str, tuple[tuple[str, object, str], ...]] = {
    "memory": (("streams", True, "host"), ("way", "suspend", "host")),
    "tail": (("partitions", True, "switch"),),
    "batching": (("static", True, "padding"),),
}
"""slot -> (declaration, value, what it needs of the backend)."""


def faults(cls: type[Part]) -> list[str]:
    """What is wrong with the declarations of a part's class."""
    slot = cls.slot
    if slot not in SLOTS:
        return [f"slot = {shown(slot)}; declare one of {', '.join(SLOTS)}"]
    if not issubclass(cls, BASES[slot]):
        return [f"slot = {shown(slot)} but it is no {BASES[slot].__name__}; derive it from that"]
    return [*_config(cls), *_words(cls), *_unasked(cls), *_needs(cls)]


def _config(cls: type[Part]) -> list[str]:
    config = cls.Config
    if not dataclasses.is_dataclass(config):
        return ["Config is no dataclass; make it @dataclass(frozen=True, kw_only=True)"]
    if not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return ["Config is not frozen; make it @dataclass(frozen=True, kw_only=True)"]
    found = []
    for field in dataclasses.fields(config):
        kind = field.type if isinstance(field.type, str) else field.type.__name__
        if kind not in TYPES:
            found.append(f"option {field.name} is a {kind}; options are {', '.join(TYPES)}")
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            found.append(f"option {field.name} has no default; every option needs one")
    return found


def _words(cls: type[Part]) -> list[str]:
    found = []
    if cls.changes not in CHANGES:
        found.append(f"changes = {shown(cls.changes)}; declare one of {', '.join(CHANGES)}")
    unknown = sorted(set(cls.needs) - CAPABILITIES)
    if unknown:
        known = ", ".join(sorted(CAPABILITIES))
        found.append(f"needs {', '.join(unknown)}, which no backend has; known are {known}")
    way = getattr(cls, "way", "recompute")
    if way not in ("recompute", "suspend", "stall"):
        found.append(f"way = {shown(way)}; declare one of recompute, suspend, stall")
    return found


def _unasked(cls: type[Part]) -> list[str]:
    """Methods that it has and that nobody asks for."""
    base_class, found = BASES[cls.slot], []
    for name, (declaration, value) in UNASKED.get(cls.slot, {}).items():
        if inspect.getattr_static(cls, name) is inspect.getattr_static(base_class, name):
            continue
        declared = inspect.getattr_static(cls, declaration)
        if declared is inspect.getattr_static(base_class, "shares", None):
            found.append(f"it has {name}() and one share; it is asked with several shares only")
        elif isinstance(declared, bool) and declared != value:
            found.append(f"it has {name}() and {declaration} = {declared}, so that nobody asks it")
    return found


def _needs(cls: type[Part]) -> list[str]:
    return [
        f"{declaration} = {shown(value)} without needs = frozenset({{{need!r}}})"
        for declaration, value, need in NEEDED.get(cls.slot, ())
        if getattr(cls, declaration) == value and need not in cls.needs
    ]
