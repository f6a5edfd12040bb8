"""Options of parts and of the plan: ranges declared beside the default, texts read, values checked.

It knows no part. `option(0.2, least=0, most=1)` is a dataclass field; a plain default is one too,
and then any finite number will do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from batchgen.errors import UserError
from batchgen.oneline import named

MOST_TOKENS = 2**31 - 1
"""Token counts of rows are 32 bits wide."""

LONGEST_SHOWN = 40


def option(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    or_zero: bool = False,
    unit: str = "",
) -> Any:
    """A field of a `Config` whose numbers lie in [least, most]; None leaves a side open. or_zero:
    or are 0, which says that it is left open. unit: of the number, in words."""
    metadata = {"least": least, "most": most, "or_zero": or_zero, "unit": unit}
    return dataclasses.field(default=default, metadata=metadata)


def one_of(*words: str) -> Any:
    """A text field that is one of these; the first is the default."""
    return dataclasses.field(default=words[0], metadata={"words": words})


def range_of(field: dataclasses.Field[Any]) -> str:
    """The range of a field in words; empty where it has none."""
    least, most = (_shown(field.metadata.get(side)) for side in ("least", "most"))
    if least and most:
        return f"{'0 or ' if field.metadata.get('or_zero') else ''}from {least} to {most}"
    return f"of at least {least}" if least else f"of at most {most}" if most else ""


def _shown(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def kinds_of(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The names in the annotation of a field: ("int", "None") of `int | None`."""
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    return tuple(part.strip() for part in kind.split("|"))


def _remedy(field: dataclasses.Field[Any]) -> str:
    kinds = kinds_of(field)
    if "bool" in kinds:
        what = "give true or false"
    elif "int" in kinds or "float" in kinds:
        kind = "an integer" if "int" in kinds else "a finite number"
        if unit := field.metadata.get("unit"):
            kind = f"{unit},"
        what = f"give {kind} {range_of(field)}".rstrip()
    elif words := field.metadata.get("words"):
        what = f"choose one of {', '.join(words)}"
    else:
        what = "give a text"
    if field.default is None or field.default is dataclasses.MISSING:
        return what
    return f"{what}; the default is {str(field.default).lower()}"


def read_option(key: str, field: dataclasses.Field[Any], text: str) -> Any:
    """The value of `--set key=text`, of the field's type and in its range. Raises UserError."""
    kinds = kinds_of(field)
    kind = next((name for name in ("bool", "int", "float", "str") if name in kinds), "")
    what = f"--set {key}={_shown(text)}"
    value: Any
    try:
        if kind == "bool":
            value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        else:
            value = {"int": int, "float": float, "str": str}[kind](text)
    except (KeyError, ValueError):
        raise UserError(f"{what}: not a valid {kind or 'option'}", remedy=_remedy(field)) from None
    check_option(what, field, value)
    return value


def check_option(what: str, field: dataclasses.Field[Any], value: Any) -> None:
    """Raises UserError for a number that is not finite or out of the field's range, and for a word
    that is none of its words."""
    words = field.metadata.get("words")
    if words and value not in words:
        raise UserError(f"{what}: no such choice", remedy=_remedy(field))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    least, most = field.metadata.get("least"), field.metadata.get("most")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what}: not a finite number", remedy=_remedy(field))
    if field.metadata.get("or_zero") and value == 0:
        return
    if (least is not None and value < least) or (most is not None and value > most):
        raise UserError(f"{what}: out of range", remedy=_remedy(field))


def read_plain(key: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """An option of a preset, which may come from a file: a number, a word or a truth value of the
    field's type and in its range. Raises UserError."""
    what = f"preset option {key}={_shown(value)}"
    if not isinstance(value, bool | int | float | str):
        raise UserError(f"{what[:100]}: not a plain value", remedy=_remedy(field))
    try:
        return read_option(key, field, str(value))
    except UserError as error:
        _, _, why = error.message.rpartition(": ")
        raise UserError(f"{what}: {why}", remedy=error.remedy) from None


def read_config_option(slot: str, given: str, name: str, config: type[Any], value: Any) -> Any:
    """The option `given` of a preset for the `config` of part `name`. Raises UserError."""
    fields = {item.name: item for item in dataclasses.fields(config)}
    if given not in fields:
        raise _unknown(f"preset option {slot}.{given}", name, fields)
    return read_plain(f"{slot}.{given}", fields[given], value)


def _unknown(where: str, name: str, fields: Mapping[str, Any]) -> UserError:
    remedy = f"its options: {', '.join(fields) or 'none'}"
    return UserError(f"{where}: {name} has no such option", remedy=remedy)


def read_config(
    slot: str, name: str, config: type[Any], options: Mapping[str, Any], texts: Mapping[str, str]
) -> Any:
    """The `config` of part `name`: a preset's options, then those given as text. Raises
    UserError."""
    fields = {item.name: item for item in dataclasses.fields(config)}
    values = {
        given: read_config_option(slot, given, name, config, value)
        for given, value in options.items()
    }
    for given in texts:
        if given not in fields:
            raise _unknown(f"--set {slot}.{given}", name, fields)
    for given, text in texts.items():
        values[given] = read_option(f"{slot}.{given}", fields[given], text)
    try:
        return config(**values)
    except UserError:
        raise
    except Exception as error:  # a part's own check
        raise UserError(f"options of {slot} part {name}: {named(error)}") from error
