"""Systems and clusters as data files that a user can copy: a composition of parts with its plan and
constants; machines with theirs. It builds no policy and no cost.

A system may stand on another: `base`. A constant has a value, the range in which it means what it
says, its meaning and where it comes from. Facts about a system (how it exchanges hidden states)
stand apart, under `costs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from batchgen.errors import DataError, UserError
from batchgen.plan import MOST_PAGE_TOKENS, MOST_SIZE
from batchgen.policy.options import read_config_option, read_option
from batchgen.policy.presets import NEUTRAL, PARTS, PRESETS, Preset, part_class

SUFFIXES = (".yaml", ".yml")
SIZES = (
    ("page_tokens", 1, MOST_PAGE_TOKENS),
    ("boundary", 1, MOST_SIZE),
    ("token_budget", 0, MOST_SIZE),
    ("max_num_seqs", 0, MOST_SIZE),
)
"""Fields of a system with what they may be; 0: the machine's default."""


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number that was fitted or taken from elsewhere, and what it may be."""

    value: float
    range: tuple[float, float]
    meaning: str
    source: str


class _SystemFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out is that of `base`, a preset or system, where there is one."""

    name: str
    source: str
    base: str | None = None
    parts: dict[str, str] = {}
    options: dict[str, dict[str, Any]] = {}
    page_tokens: int | None = None
    boundary: int | None = None
    token_budget: int | None = None
    max_num_seqs: int | None = None
    prefix_cache: bool | None = None
    fallback: dict[str, str] = {}
    plan: dict[str, Any] = {}
    costs: dict[str, Any] = {}
    constants: dict[str, Constant] = {}


class _ClusterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out is that of the cluster `base`, where there is one."""

    name: str
    source: str
    base: str | None = None
    gpu: str | None = None
    gpus_per_node: int | None = None
    constants: dict[str, Constant] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Machines of one kind: their GPU, how many share a host, and what their links reach."""

    name: str
    gpu: str
    gpus_per_node: int
    constants: Mapping[str, Constant]
    source: str

    @property
    def costs(self) -> dict[str, float]:
        return {name: constant.value for name, constant in self.constants.items()}


def system_names() -> list[str]:
    """Systems of the catalog, sorted."""
    return _names("systems")


def cluster_names() -> list[str]:
    """Clusters of the catalog, sorted."""
    return _names("clusters")


def is_file(text: str) -> bool:
    """Whether a name is the path of a data file."""
    return text.endswith(SUFFIXES)


def find_system(name: str) -> tuple[Preset, Mapping[str, Constant]]:
    """The preset of a system and its fitted constants, by name or path. Raises UserError and
    DataError."""
    return _system(name, ()) if is_file(name) else _own_system(name)


@cache
def _own_system(name: str) -> tuple[Preset, Mapping[str, Constant]]:
    """Of the catalog; a user's file may change while a notebook runs."""
    return _system(name, ())


def _system(name: str, above: tuple[str, ...]) -> tuple[Preset, Mapping[str, Constant]]:
    found, path = _read("systems", name, _SystemFile)
    for field in ("parts", "options", "fallback"):
        for slot in getattr(found, field):
            if slot not in PARTS:
                remedy = f"slots are {', '.join(PARTS)}"
                raise DataError(f"no such slot '{slot}'", path=path, field=field, remedy=remedy)
    base, constants = Preset(name="", parts=NEUTRAL), dict[str, Constant]()
    if found.base in PRESETS:
        base = PRESETS[found.base]
    elif found.base is not None:
        _check_base(found.base, (name, *above), path)
        base, inherited = _system(found.base, (name, *above))
        constants.update(inherited)
    constants.update(found.constants)
    plan, costs = {**base.plan, **found.plan}, {**base.costs, **found.costs}
    for key, constant in found.constants.items():
        where, _, of_plan = key.rpartition(".")
        if where not in ("", "plan"):
            raise DataError("must be of costs, or plan.NAME", path=path, field=f"constants.{key}")
        value = _plain(constant.value) if where else constant.value
        _check_value(f"constants.{key}", where or "costs", of_plan, value, path)
        (plan if where else costs)[of_plan] = value
    for field in ("plan", "costs"):
        for key, value in getattr(found, field).items():
            if not isinstance(value, bool | int | float | str):
                raise DataError("must be a plain value", path=path, field=f"{field}.{key}")
            _check_value(f"{field}.{key}", field, key, value, path)
    for field, least, most in SIZES:
        size = getattr(found, field)
        if size is not None and not least <= size <= most:
            raise DataError(f"must lie from {least} to {most}", path=path, field=field)
    options = {
        slot: {**base.options.get(slot, {}), **found.options.get(slot, {})}
        for slot in (*base.options, *found.options)
    }
    parts = {**base.parts, **found.parts}
    _check_parts(found, parts, path)
    own = ("page_tokens", "boundary", "token_budget", "max_num_seqs", "prefix_cache")
    given = {field: getattr(found, field) for field in own}
    preset = replace(
        base,
        name=found.name,
        parts=parts,
        options=options,
        fallback={**base.fallback, **found.fallback},
        plan=plan,
        costs=costs,
        source=found.source,
        **{field: value for field, value in given.items() if value is not None},
    )
    return preset, constants


def _check_value(field: str, where: str, name: str, value: float | str, path: str) -> None:
    """Raises DataError for a constant of costs or an option of the plan that there is not, or that
    cannot be this. `field`: where it stands in the file."""
    from batchgen.cost.efficiency import constants_by_name
    from batchgen.planning import options_by_name

    known = options_by_name() if where == "plan" else constants_by_name()
    what = "the plan has no such option" if where == "plan" else "costs have no such constant"
    if name not in known:
        raise DataError(what, path=path, field=field, remedy=f"known: {', '.join(known)}")
    try:
        read_option(name, known[name], str(value))
    except UserError as error:
        raise _of_file(error, path, field) from None


def _check_parts(found: _SystemFile, parts: Mapping[str, str], path: str) -> None:
    """Raises DataError for a part that there is not, and for an option that it has not or that
    cannot be this."""
    for slot in found.parts.keys() | found.options.keys():
        try:
            cls = part_class(slot, parts[slot])
        except UserError as error:
            raise DataError(
                error.message, path=path, field=f"parts.{slot}", remedy=error.remedy
            ) from None
        for name, value in found.options.get(slot, {}).items():
            field = f"options.{slot}.{name}"
            try:
                read_config_option(slot, name, parts[slot], cls.Config, value)
            except UserError as error:
                raise _of_file(error, path, field) from None


def _of_file(error: UserError, path: str, field: str) -> DataError:
    """What is wrong with an option, as a mistake of the file."""
    value, _, why = error.message.rpartition(": ")
    _, _, value = value.partition("=")
    text = f"{value}: {why}" if value else why
    return DataError(text, path=path, field=field, remedy=error.remedy)


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def find_cluster(name: str) -> Cluster:
    """A cluster by name or path. Raises UserError and DataError."""
    return _cluster(name, ()) if is_file(name) else _own_cluster(name)


@cache
def _own_cluster(name: str) -> Cluster:
    """Of the catalog."""
    return _cluster(name, ())


def _cluster(name: str, above: tuple[str, ...]) -> Cluster:
    found, path = _read("clusters", name, _ClusterFile)
    base = None
    if found.base is not None:
        _check_base(found.base, (name, *above), path)
        base = _cluster(found.base, (name, *above))
    gpu = found.gpu if found.gpu is not None or base is None else base.gpu
    node = found.gpus_per_node
    if node is None and base is not None:
        node = base.gpus_per_node
    if gpu is None:
        raise DataError("is missing", path=path, field="gpu")
    if node is None or node < 1:
        raise DataError("must be at least 1", path=path, field="gpus_per_node")
    for key, constant in found.constants.items():
        _check_value(f"constants.{key}", "costs", key, constant.value, path)
    inherited = base.constants if base is not None else {}
    return Cluster(
        name=found.name,
        gpu=gpu,
        gpus_per_node=node,
        constants={**inherited, **found.constants},
        source=found.source,
    )


def _check_base(base: str, above: tuple[str, ...], path: str) -> None:
    if base in above:
        raise DataError(f"'{base}' stands on itself", path=path, field="base")


def _names(folder: str) -> list[str]:
    place = resources.files("batchgen.catalog").joinpath(folder)
    return sorted(entry.name.removesuffix(".yaml") for entry in place.iterdir())


def _read(folder: str, name: str, kind: type[Any]) -> tuple[Any, str]:
    """The checked content of a file of the catalog, or of the user's, and its path in words."""
    import yaml

    if is_file(name):
        path = name
        try:
            if Path(name).exists() and not Path(name).is_file():
                raise UserError(f"'{name}' is no file", remedy="check the path")
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise UserError(f"cannot read '{name}' ({why})", remedy="check the path") from None
    else:
        if name not in _names(folder):
            raise UserError(
                f"unknown {folder[:-1]} '{name}'",
                remedy=f"choose one of {', '.join(_names(folder))}, or give a .yaml file",
            )
        place = resources.files("batchgen.catalog").joinpath(folder, f"{name}.yaml")
        path, text = f"catalog/{folder}/{name}.yaml", place.read_text(encoding="utf-8")
    try:
        found = msgspec.convert(yaml.safe_load(text), kind)
    except msgspec.ValidationError as error:
        raise DataError(str(error), path=path, remedy="see a file of the catalog") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        raise DataError("is not valid YAML", path=path, line=line) from None
    if not (found.name.strip() and found.name.isprintable()):
        raise DataError("must be printable text", path=path, field="name")
    for key, constant in found.constants.items():
        low, high = constant.range
        if not (low <= constant.value <= high and isfinite(low) and isfinite(high)):
            raise DataError(
                f"{constant.value:g} lies outside its range {low:g} to {high:g}",
                path=path,
                field=f"constants.{key}",
            )
    return found, path
