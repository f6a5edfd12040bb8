"""Fitted surfaces as a file: an npz of small arrays, read without pickle. Terms are in the code.

A file says with which terms it was made; one of other terms is refused, not misread.
"""

from __future__ import annotations

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

SHIPPED = Path(__file__).parents[2] / "catalog" / "operators.npz"
ANY_GPU = "any"  # fitted to all GPUs together, for those that have no tables
_DETAILS = "details"
Key = tuple[str, str, str]  # operator, gpu, variant


def save(path: Path, fitted: Mapping[Key, Fitted], details: Mapping[str, Any]) -> None:
    """`details`: what else is to be known of them (sources, errors), JSON-able."""
    arrays: dict[str, Any] = {}
    for (operator, gpu, variant), one in sorted(fitted.items()):
        for number, values in enumerate(one.surface.values):
            arrays["|".join((operator, gpu, variant, str(number)))] = values.astype(np.float16)
    terms = {name: _digest(operator) for name, operator in OPERATORS.items()}
    text = json.dumps({"terms": terms} | dict(details), sort_keys=True)
    arrays[_DETAILS] = np.frombuffer(text.encode(), dtype=np.uint8)
    np.savez_compressed(path, **arrays)


def load(path: Path = SHIPPED) -> tuple[dict[Key, Fitted], dict[str, Any]]:
    """What `save` wrote. Raises DataError for another file, or one of other terms."""
    try:
        # Opened here: numpy leaves a file open that turns out to be none of its own.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        details = json.loads(bytes(arrays.pop(_DETAILS)).decode())
        terms = details["terms"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        AttributeError,
        BadZipFile,
    ) as error:
        raise DataError(f"holds no fitted operators ({error!s:.80})", path=str(path)) from None
    parts: dict[Key, dict[int, Any]] = {}
    for name, values in arrays.items():
        operator, gpu, variant, number = name.split("|")
        parts.setdefault((operator, gpu, variant), {})[int(number)] = values
    found = {}
    for key, tables in parts.items():
        one = OPERATORS.get(key[0])
        if one is None or terms.get(key[0]) != _digest(one):
            raise DataError(
                f"was fitted with other terms of {key[0]}",
                path=str(path),
                remedy="fit it again: batchgen bench costs --tables DIR --write FILE",
            )
        values = tuple(tables[number].astype(np.float32) for number in sorted(tables))
        surface = Surface(terms=one.terms, values=values)
        found[key] = Fitted(operator=one, variant=key[2], surface=surface)
    return found, details


def _digest(operator: Operator) -> str:
    """Of the terms: their columns and knots."""
    return hashlib.sha256(repr(operator.terms).encode()).hexdigest()[:16]
