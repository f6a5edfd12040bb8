"""What is to be checked: the parts of a module or a file, one part, or the parts of a preset."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from batchgen.check.limit import LIMIT_S
from batchgen.check.loads import NAMES, Composition, swaps
from batchgen.check.watch import MOST_TOLD, Watch, told
from batchgen.errors import UserError
from batchgen.oneline import one_line
from batchgen.policy.base import SLOTS, Part
from batchgen.policy.presets import (
    PARTS,
    find_preset,
    installed,
    part_class,
    part_config,
    preset_names,
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Parts that are checked together: one of a module, or all of a preset.

    options: per slot, those of its preset. texts: those of the command line. limit_s: of a run.
    """

    label: str
    parts: Mapping[str, type[Part]]
    preset: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    limit_s: float = LIMIT_S

    def make(self, watch: Watch, changes: Mapping[str, str] | None = None) -> dict[str, Part]:
        """Fresh parts under watch; changes: other declarations, by slot."""
        made = {}
        for slot, cls in self.parts.items():
            options, texts = self.options.get(slot, {}), self.texts.get(slot, {})
            config = part_config(slot, cls.__name__, cls, options, texts)
            made[slot] = watch.make(cls, config, (changes or {}).get(slot, ""))
        return made

    def compositions(self) -> tuple[list[Composition], list[Composition]]:
        """(those that every check runs, those that it draws from): a part in every preset, and
        there beside every other part of every other slot; a preset as it is."""
        if self.preset:
            return [(self.preset, {})], [(self.preset, {})]
        taken = {f"{slot}.part" for slot in self.parts}
        return [(name, {}) for name in NAMES], [one for one in swaps() if not taken & set(one[1])]

    def modules(self) -> list[str]:
        return sorted({cls.__module__ for cls in self.parts.values()})


def find(
    target: str, settings: Sequence[tuple[str, str]] = (), limit_s: float = LIMIT_S
) -> list[Subject]:
    """The subjects that a text names. Raises UserError: nothing there, or not to be imported.

    target: a preset; an installed or built-in part "slot.name"; a module, a path of a .py file, or
    either with ":Class".
    """
    try:
        return [replace(one, limit_s=limit_s) for one in _find(target, settings)]
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a class may refuse even to be looked at
        raise UserError(f"{target} cannot be looked at: {told(error)}") from None


def _find(target: str, settings: Sequence[tuple[str, str]]) -> list[Subject]:
    slot, _, name = target.partition(".")
    if target in preset_names():
        subjects = [of_preset(target)]
    elif slot in SLOTS and (name in PARTS[slot] or target in installed("batchgen.parts")):
        subjects = [of_class(_loaded(target, slot, name), target)]
    else:
        place, _, wanted = target.partition(":")
        module = _module(place)
        subjects = [of_class(cls) for cls in _classes(module, wanted, place)]
    texts: dict[str, dict[str, str]] = {}
    for key, text in settings:
        slot, _, option = key.partition(".")
        if not any(slot in subject.parts for subject in subjects):
            raise UserError(f"--set {key}={text}: {target} has no {slot} part")
        texts.setdefault(slot, {})[option] = text
    found = []
    for subject in subjects:
        mine = {slot: more for slot, more in texts.items() if slot in subject.parts}
        for slot, more in mine.items():  # refused here, not in the first case
            cls = subject.parts[slot]
            part_config(slot, cls.__name__, cls, subject.options.get(slot, {}), more)
        found.append(replace(subject, texts=mine))
    return found


def of_class(cls: type[Part], label: str = "") -> Subject:
    return Subject(label=label or f"{cls.slot}.{cls.__name__}", parts={cls.slot: cls})


def of_preset(name: str) -> Subject:
    """All parts of a preset, with the options that it sets."""
    try:
        preset = find_preset(name)
        parts = {slot: part_class(slot, preset.parts[slot]) for slot in SLOTS}
    except (UserError, KeyError):
        raise
    except Exception as error:
        raise UserError(f"preset {name} cannot be loaded: {told(error)}") from None
    return Subject(label=name, parts=parts, preset=name, options=preset.options)


def _loaded(target: str, slot: str, name: str) -> type[Part]:
    try:
        return part_class(slot, name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"part {target} cannot be loaded: {told(error)}") from None


def _module(place: str) -> ModuleType:
    """The module of a dotted name or of a file."""
    path = Path(place)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise UserError(f"{place} does not exist", remedy="give the path of a .py file")
            with chdir("."):  # whatever the module does
                return _of_file(path)
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # as python -m does
        with chdir("."):
            return importlib.import_module(place)
    except (UserError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if isinstance(error.name, str) and (
            place == error.name or place.startswith(error.name + ".")
        ):
            remedy = "give a preset, slot.name of a part, a module, a .py file, or module:Class"
            raise UserError(f"there is no '{place}'", remedy=remedy) from None
        raise UserError(f"{place} cannot be imported: {one_line(error, MOST_TOLD)}") from None
    except BaseException as error:  # SystemExit too
        raise UserError(f"{place} cannot be imported: {told(error)}") from None


def _of_file(path: Path) -> ModuleType:
    """A file as a module of its name; its folder is searched for what it imports."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if known is not None or spec is None or spec.loader is None:
        raise UserError(f"{path}: '{name}' is the name of another module", remedy="rename the file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _classes(module: ModuleType, wanted: str, place: str) -> list[type[Part]]:
    """Parts that the module defines, or the one wanted."""
    if wanted:
        cls = getattr(module, wanted, None)
        if cls is None:
            raise UserError(f"{place} has no '{wanted}'", remedy=_known(module))
        if not (isinstance(cls, type) and issubclass(cls, Part)):
            raise UserError(f"{place}:{wanted} is no Part class", remedy=_known(module))
        return [cls]
    found = _own(module)
    if not found:
        remedy = "derive a class from OrderPart, AdmissionPart, ... of batchgen.policy.base"
        raise UserError(f"{place} defines no policy part", remedy=remedy)
    return found


def _own(module: ModuleType) -> list[type[Part]]:
    """Part classes that are defined in a module, or inside its package; not those of names that
    begin with an underscore."""
    own = module.__name__
    return [
        cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, Part)
        and (cls.__module__ == own or cls.__module__.startswith(own + "."))
        and not name.startswith("_")
    ]


def _known(module: ModuleType) -> str:
    names = ", ".join(cls.__name__ for cls in _own(module))
    return f"its parts: {names}" if names else "it defines none"
