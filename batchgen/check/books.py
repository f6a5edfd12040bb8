"""The books of a run as plain values, so that two moments can be compared. It only reads.

Everything that the table, the engines and the cluster hold is there, except what any question may
tidy up without consequence: lanes and lazy heaps forget entries that died when they are looked at.
"""

from __future__ import annotations

import types
from array import array
from collections import deque
from typing import Any

import numpy as np

from batchgen.oneline import shown
from batchgen.plan import Plan
from batchgen.policy.compiled import Compiled
from batchgen.runtime.cluster.hunger import Most
from batchgen.runtime.cluster.loads import Loads
from batchgen.runtime.cluster.machine import ClusterMachine
from batchgen.runtime.core import Runtime
from batchgen.runtime.engine.deck import Deck, MatchLane
from batchgen.runtime.engine.lane import FifoLane, KeyedLane
from batchgen.runtime.engine.machine import EngineMachine
from batchgen.sequence import COLUMNS, Table

ATOMS = (int, float, str, bytes, bool, type(None))
LISTS = (list, tuple, deque)
OPAQUE = (
    *(ClusterMachine, Table, Compiled, Plan, Most, type, types.ModuleType),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.GeneratorType),
)
DEEPEST = 12
LONGEST = 10_000


def books(runtime: Runtime) -> dict[str, Any]:
    """Name -> value of everything, by "table.COLUMN", "engine N" and "cluster.NAME"."""
    table, cluster = runtime.table, runtime.cluster
    found: dict[str, Any] = {
        f"table.{name}": getattr(table, "v_" + name).tobytes() for name in COLUMNS
    }
    for engine in cluster.engines:
        found[f"engine {engine.id}"] = _members(engine, DEEPEST)
    for name in _names(cluster):
        if name != "engines":
            found[f"cluster.{name}"] = plain(getattr(cluster, name))
    return found


def plain(value: Any, depth: int = DEEPEST) -> Any:
    """A value made of dicts, tuples and atoms that equals another exactly when the originals hold
    the same."""
    if type(value) in ATOMS:
        return value
    if isinstance(value, EngineMachine):
        return f"<engine {value.id}>"
    if isinstance(value, OPAQUE) or depth == 0:
        return type(value).__name__
    if isinstance(value, LISTS):
        return tuple([plain(one, depth - 1) for one in value])
    if isinstance(value, dict):
        return tuple([(plain(k, depth - 1), plain(v, depth - 1)) for k, v in value.items()])
    if isinstance(value, set | frozenset):
        return frozenset(plain(one, depth - 1) for one in value)
    if isinstance(value, array | np.ndarray):
        return value.tobytes()
    if isinstance(value, FifoLane | KeyedLane | Deck | MatchLane):
        return tuple(value.rows())
    if isinstance(value, Loads):
        return plain((value._ranks, value._total), depth - 1)
    if hasattr(value, "getstate"):  # random.Random
        return plain(value.getstate(), depth - 1)
    return _members(value, depth - 1)


def _members(value: Any, depth: int) -> Any:
    """The attributes of an object, by name."""
    names = _names(value)
    if not names:
        text = shown(value, LONGEST)
        return type(value).__name__ if " at 0x" in text else text
    return {
        name: plain(getattr(value, name), depth)
        for name in names
        if hasattr(value, name) and name != "__weakref__"
    }


def _names(value: Any) -> list[str]:
    """Of all attributes of an object; a compiled class lists its own."""
    names = [name for cls in type(value).__mro__ for name in _slots(cls)]
    return names + list(getattr(value, "__dict__", ()))


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", cls.__dict__.get("__mypyc_attrs__", ()))
    return (slots,) if isinstance(slots, str) else tuple(slots)


def change(before: Any, after: Any, name: str = "") -> str:
    """Where two plain values differ first, and how; empty when they do not."""
    if before == after:
        return ""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            if key not in before or key not in after or before[key] != after[key]:
                path = f"{name}.{key}" if name else str(key)
                return change(before.get(key), after.get(key), path)
    if isinstance(before, bytes) and isinstance(after, bytes):
        return f"{name}, {sum(a != b for a, b in zip(before, after, strict=False))} bytes of it"
    if isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            if one != other:
                return change(one, other, f"{name}[{index}]")
    return f"{name}: {_short(before)} became {_short(after)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
