"""Small JSON files of a checkpoint, read field by field. Loads no torch and knows no model.

Every mistake is one line with file, field and remedy. Sizes have upper bounds: they are checked
before anything is allocated or repeated as often as a field says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batchgen.errors import DataError, UserError
from batchgen.paths import has_file

MAX_CONFIG_BYTES = 16 << 20

# Far above every published model, far below what a loop or an allocation could not survive.
MAX_LAYERS = 1024
MAX_SIZE = 1 << 20  # hidden sizes, widths, and heads times head_dim
MAX_HEADS = 1 << 12
MAX_HEAD_DIM = 1 << 10
MAX_VOCAB = 1 << 22
MAX_CONTEXT = 1 << 24  # tokens
MAX_EXPERTS = 1 << 12  # of one layer
MAX_ALL_EXPERTS = 1 << 16  # of all layers: each is three tensors


class Fields:
    """A JSON object read field by field, so that each mistake names file and field; `within`: the
    fields that it is in, each with a dot behind it."""

    def __init__(self, path: Path, values: dict[str, Any], within: str = "") -> None:
        self.path, self.values, self.within = path, values, within

    def error(self, field: str, message: str, remedy: str = "") -> DataError:
        """The exception to raise for a field."""
        remedy = remedy or "compare the file with the published checkpoint"
        name = self.within + field
        return DataError(message, path=str(self.path), field=name, remedy=remedy)

    def integer(
        self, field: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE
    ) -> int:
        """An integer in [low, high]; `default` if the field is absent or null."""
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.error(field, "is missing")
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(field, f"must be an integer from {low} to {high}, got {value!r:.60}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.error(field, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.error(field, f"must be a positive number, got {value!r:.60}")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(field, f"must be true or false, got {value!r:.60}")
        return value

    def choice(self, field: str, default: str, choices: tuple[str, ...]) -> str:
        """One of `choices`; `default` if the field is absent or null."""
        value = self.values.get(field)
        value = default if value is None else value
        if value not in choices:
            remedy = f"supported: {', '.join(choices)}"
            raise self.error(field, f"{value!r:.60} is not supported", remedy)
        return str(value)

    def section(self, field: str) -> Fields:
        """An object inside this one; an empty one if the field is absent or null."""
        value = self.values.get(field)
        if value is not None and not isinstance(value, dict):
            raise self.error(field, f"must be an object, got {value!r:.60}")
        return Fields(self.path, value or {}, f"{self.within}{field}.")

    def items(self, field: str) -> list[Any] | None:
        """A list, or None if the field is absent or null."""
        value = self.values.get(field)
        if value is not None and not isinstance(value, list):
            raise self.error(field, f"must be a list, got {value!r:.60}")
        return value


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """One JSON object from a small file of a checkpoint; a UserError names what is wrong."""
    if not has_file(path):
        remedy = "give the folder of a Hugging Face checkpoint, or run `batchgen model init`"
        raise UserError(f"{path.parent} has no {path.name} ({what})", remedy=remedy)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(
            f"{path} is larger than {MAX_CONFIG_BYTES} bytes", remedy="not a checkpoint"
        )
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not valid JSON ({error!s:.120})", path=str(path)) from None
    if not isinstance(value, dict):
        raise DataError("must hold a JSON object", path=str(path))
    return value
