"""Fitted surfaces as a file: an npz of small arrays, read without pickle. Terms are in the code.

A file says what each fit is relative to (terms, floors, peaks of the catalog); one that was fitted
to something else is refused, not misread.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from batchgen.cost.operators.base import Operator
from batchgen.cost.operators.fitted import Fitted
from batchgen.cost.operators.kinds import OPERATORS
from batchgen.cost.surface import Surface
from batchgen.errors import DataError
from batchgen.hardware import load_gpu

SHIPPED = Path(__file__).parents[2] / "catalog" / "operators.npz"
ANY_GPU = "any"  # fitted to all GPUs together, for those that have no tables
_DETAILS = "details"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError)
Key = tuple[str, str, str]  # operator, gpu, variant


def save(path: Path, fitted: Mapping[Key, Fitted], details: Mapping[str, Any]) -> None:
    """`details`: what else is to be known of them (sources, errors), JSON-able."""
    arrays: dict[str, Any] = {}
    digests = {}
    for (operator, gpu, variant), one in sorted(fitted.items()):
        digests["|".join((operator, gpu, variant))] = _digest(one.operator, gpu, variant)
        for number, values in enumerate(one.surface.values):
            arrays["|".join((operator, gpu, variant, str(number)))] = values.astype(np.float16)
    text = json.dumps({"digests": digests} | dict(details), sort_keys=True)
    arrays[_DETAILS] = np.frombuffer(text.encode(), dtype=np.uint8)
    np.savez_compressed(path, **arrays)


@functools.cache
def shipped() -> dict[Key, Fitted]:
    """The fits of this project, read once."""
    return load()[0]


def load(path: Path = SHIPPED) -> tuple[dict[Key, Fitted], dict[str, Any]]:
    """What `save` wrote. Raises DataError for another file, or one that was fitted to other terms,
    floors or peaks."""
    try:
        # Opened here: numpy leaves a file open that turns out to be none of its own.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        details = json.loads(bytes(arrays.pop(_DETAILS)).decode())
        digests = dict(details["digests"])
        parts: dict[Key, dict[int, Any]] = {}
        for name, values in arrays.items():
            operator, gpu, variant, number = name.split("|")
            parts.setdefault((operator, gpu, variant), {})[int(number)] = values
        return {key: _fitted(path, key, tables, digests) for key, tables in parts.items()}, details
    except (*_UNREADABLE, BadZipFile) as error:
        raise DataError(f"holds no fitted operators ({error!s:.80})", path=str(path)) from None


def _fitted(path: Path, key: Key, tables: Mapping[int, Any], digests: Mapping[str, Any]) -> Fitted:
    operator = OPERATORS.get(key[0])
    if operator is None or digests.get("|".join(key)) != _digest(operator, key[1], key[2]):
        raise DataError(
            f"was fitted with other terms, floors or peaks of {' '.join(key)}",
            path=str(path),
            remedy="fit it again: batchgen bench costs --tables DIR --write FOLDER",
        )
    values = tuple(tables[number].astype(np.float32) for number in range(len(operator.terms)))
    for term, table in zip(operator.terms, values, strict=True):
        if table.shape != tuple(len(axis.knots) for axis in term) or not np.isfinite(table).all():
            raise ValueError(f"values of {' '.join(key)} are not those of its terms")
    surface = Surface(terms=operator.terms, values=values)
    return Fitted(operator=operator, variant=key[2], surface=surface)


def _digest(operator: Operator, gpu: str, variant: str) -> str:
    """Of what a surface is relative to: columns and knots of the terms, logarithms and floors of
    some points. `ANY_GPU` has no peaks of its own."""
    some = {name: np.array([1.0, 2.0, 64.0, 128.0]) for name in operator.columns}
    machine = load_gpu("h100" if gpu == ANY_GPU else gpu)
    floor = np.round(np.log(operator.floor_s(machine, variant, some)), 4).tolist()
    logs = {name: np.round(values, 4).tolist() for name, values in operator.logs(some).items()}
    said = repr((operator.terms, floor, sorted(logs.items())))
    return hashlib.sha256(said.encode()).hexdigest()[:16]
