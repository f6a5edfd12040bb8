"""A sweep from its YAML file: every field checked, by name, line and remedy. It runs nothing."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchgen.errors import UserError
from batchgen.layout import parse_layout
from batchgen.paths import kind_of
from batchgen.sweep.document import Document, Place, read_document
from batchgen.sweep.spec import BEST, RULE, Devices, Options, Sweep

MOST_RUNS = 100_000
MOST_SEED = 2**32 - 1
MOST_GPUS = 1 << 20
MOST_NAME = 60
MOST_INT = 2**53

TEXTS = ("model", "gpu", "cluster", "arrivals", "costs", "body")
NUMBERS = ("gpus_per_node", "max_output_tokens", "limit")
FIELDS = (
    *("name", "trace", "rows", *TEXTS, *NUMBERS, "oracle", "profile"),
    *("policies", "layouts", "gpus", "devices", "options", "seeds"),
)
LINE_FIELDS = ("at_s", "kind", "gpu", "node", "factor", "for_s", "deadline_s")


def read_sweep(path: str) -> Sweep:
    """Raises UserError and DataError: one line with file, line, field and remedy."""
    document = read_document(path)
    return _Fields(document).sweep()


class _Fields:
    def __init__(self, document: Document) -> None:
        self.document, self.data = document, document.data
        self.folder = Path(document.path).parent

    def refuse(self, place: Place, message: str, remedy: str) -> Any:
        self.document.refuse(place, message, remedy)

    def sweep(self) -> Sweep:
        for key in self.data:
            if key not in FIELDS:
                near = difflib.get_close_matches(key, FIELDS, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                self.refuse((key,), "no such field", f"{hint}fields are {', '.join(FIELDS)}")
        for key in ("trace", "policies", "gpus"):
            if key not in self.data:
                self.refuse((key,), "missing", "every sweep has trace, policies and gpus")
        if "gpu" in self.data and "cluster" in self.data:
            self.refuse(("cluster",), "beside 'gpu'", "give one of them")
        found = Sweep(
            name=self.name(),
            path=self.document.path,
            fixed=self.fixed(),
            rows=self.number("rows") if "rows" in self.data else None,
            policies=self.names("policies", self.policy),
            layouts=self.names("layouts", self.layout) if "layouts" in self.data else (RULE,),
            gpus=tuple(self.axis("gpus", 1, MOST_GPUS)),
            devices=self.devices() if "devices" in self.data else (Devices(name="healthy"),),
            options=self.options() if "options" in self.data else (Options(name="as it is"),),
            seeds=self.seeds(),
        )
        if found.num_runs > MOST_RUNS:
            self.refuse((), f"{found.num_runs:,} runs", f"at most {MOST_RUNS:,}: shorten an axis")
        self.layouts_fit(found)
        return found

    # -- single values ----------------------------------------------------------------------------

    def name(self) -> str:
        if "name" not in self.data:
            return Path(self.document.path).stem
        return self.word(("name",), self.data["name"])

    def fixed(self) -> dict[str, Any]:
        fixed: dict[str, Any] = {"trace": self.file("trace")}
        for key in TEXTS:
            if key in self.data:
                fixed[key] = self.text((key,), self.data[key])
        for key in NUMBERS:
            if key in self.data:
                fixed[key] = self.number(key)
        if "oracle" in self.data:
            if not isinstance(self.data["oracle"], bool):
                self.refuse(("oracle",), "is no truth value", "give true or false")
            fixed["oracle"] = self.data["oracle"]
        if "profile" in self.data:
            fixed["profile"] = self.file("profile", folder=True)
        self.names_known(fixed)
        return fixed

    def names_known(self, fixed: dict[str, Any]) -> None:
        """Model, GPU and the words of a job, before the first run."""
        from batchgen.catalog.systems import find_cluster
        from batchgen.hardware import load_gpu
        from batchgen.model import load_model
        from batchgen.simjob import ARRIVALS, COSTS

        for key, known in (("arrivals", ARRIVALS), ("costs", COSTS)):
            if key in fixed and fixed[key] not in known:
                self.refuse((key,), f"'{fixed[key]}'", f"choose one of {', '.join(known)}")
        if "profile" in fixed and fixed.get("costs", COSTS[0]) != COSTS[0]:
            self.refuse(("profile",), "beside measured costs", "give one of them")
        finders: tuple[tuple[str, Callable[[str], Any]], ...] = (
            ("model", load_model),
            ("gpu", load_gpu),
            ("cluster", find_cluster),
        )
        for key, find in finders:
            if key in fixed:
                self.checked((key,), find, fixed[key])

    def checked(self, place: Place, check: Callable[[Any], Any], value: Any) -> None:
        """A mistake that another module has found, as one of this line."""
        try:
            check(value)
        except UserError as error:
            self.refuse(place, error.message, error.remedy)

    def text(self, place: Place, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            self.refuse(place, "is no text", "give a name; put it in quotes if it is a number")
        if not value.isprintable():
            self.refuse(place, "has characters that cannot be printed", "take them out")
        return str(value)

    def word(self, place: Place, value: Any) -> str:
        """A name for tables and files."""
        text = self.text(place, value)
        if len(text) > MOST_NAME or "/" in text or text.startswith("."):
            remedy = f"give at most {MOST_NAME} characters without '/', not beginning with '.'"
            self.refuse(place, f"'{text[:MOST_NAME]}' cannot name anything", remedy)
        return text

    def number(self, key: str) -> int:
        return self.whole((key,), self.data[key], 1, MOST_INT)

    def whole(self, place: Place, value: Any, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(place, f"{value!r:.40}", f"give a whole number from {least} to {most}")
        return int(value)

    def file(self, key: str, *, folder: bool = False) -> str:
        return self.path_at((key,), self.data[key], folder=folder)

    def path_at(self, place: Place, value: Any, *, folder: bool = False) -> str:
        """A path of the file, which is relative to the folder of the file."""
        path = str(self.folder / self.text(place, value))
        self.there(place, path, folder=folder)
        return path

    def there(self, place: Place, path: str, *, folder: bool = False) -> None:
        kind = kind_of(path)
        if kind != "file" and not (folder and kind == "folder"):
            what = f"is a {kind}" if kind else "does not exist"
            remedy = "give a file; paths are relative to the folder of the sweep"
            self.refuse(place, f"{path} {what}", remedy)

    # -- axes -------------------------------------------------------------------------------------

    def entries(self, key: str) -> list[Any]:
        value = self.data[key]
        found = value if isinstance(value, list) else [value]
        if not found:
            self.refuse((key,), "is empty", "give at least one")
        return found

    def place(self, key: str, number: int) -> Place:
        return (key, number) if isinstance(self.data[key], list) else (key,)

    def distinct(self, key: str, values: list[Any]) -> None:
        for i, value in enumerate(values):
            if value in values[:i]:
                self.refuse(self.place(key, i), f"names {value} twice", "name each once")

    def names(self, key: str, read: Callable[[Place, str], str]) -> tuple[str, ...]:
        found = []
        for i, value in enumerate(self.entries(key)):
            place = self.place(key, i)
            found.append(read(place, self.text(place, value)))
        self.distinct(key, found)
        return tuple(found)

    def policy(self, place: Place, text: str) -> str:
        from batchgen.catalog.systems import is_file
        from batchgen.policy.presets import find_preset

        name = str(self.folder / text) if is_file(text) else text
        self.checked(place, find_preset, name)
        return name

    def layout(self, place: Place, text: str) -> str:
        return text

    def layouts_fit(self, sweep: Sweep) -> None:
        """A layout that fits none of the numbers of GPUs is a mistake; one that fits some is a row
        with an error elsewhere."""
        for i, layout in enumerate(sweep.layouts):
            if layout in (BEST, RULE):
                continue
            wrong = []
            for gpus in sweep.gpus:
                try:
                    parse_layout(layout, gpus)
                except UserError as error:
                    wrong.append(error)
            if len(wrong) == len(sweep.gpus):
                self.refuse(self.place("layouts", i), wrong[0].message, wrong[0].remedy)

    def axis(self, key: str, least: int, most: int) -> list[int]:
        values = [
            self.whole(self.place(key, i), value, least, most)
            for i, value in enumerate(self.entries(key))
        ]
        self.distinct(key, values)
        return values

    def seeds(self) -> tuple[int, ...]:
        """A list, or how many there are from 0 on."""
        value = self.data.get("seeds", 1)
        if isinstance(value, list):
            return tuple(self.axis("seeds", 0, MOST_SEED))
        return tuple(range(self.whole(("seeds",), value, 1, MOST_RUNS)))

    def named(self, key: str, otherwise: str) -> dict[str, Any]:
        value = self.data[key]
        if not isinstance(value, dict) or not value:
            self.refuse((key,), "is no mapping of names", otherwise)
        for name in value:
            self.word((key, name), name)
        return dict(value)

    def options(self) -> tuple[Options, ...]:
        from batchgen.planning import plan_options

        found = []
        remedy = "for instance 'fixed: {placement.part: least-work}', and 'plain: {}' for none"
        for name, pairs in self.named("options", remedy).items():
            place: Place = ("options", name)
            if not isinstance(pairs, dict):
                self.refuse(place, "is no mapping of options", remedy)
            texts = {}
            for key, value in pairs.items():
                here = (*place, key)
                slot, dot, option = key.partition(".")
                if not (slot and dot and option):
                    self.refuse(here, "is not of the form part.option", remedy)
                if not isinstance(value, bool | int | float | str):
                    self.refuse(here, "is no plain value", "give a number, a word, true or false")
                if isinstance(value, float) and not math.isfinite(value):
                    self.refuse(here, "is not finite", "give a finite number")
                texts[key] = str(value).lower() if isinstance(value, bool) else str(value)
            for key, text in texts.items():
                if key.startswith("plan."):
                    self.checked((*place, key), plan_options, {key: text})
            found.append(Options(name=name, pairs=tuple(texts.items())))
        return tuple(found)

    def devices(self) -> tuple[Devices, ...]:
        remedy = "for instance 'slow: slow.jsonl', and 'healthy: null' for none"
        return tuple(
            self.trouble(("devices", name), name, value)
            for name, value in self.named("devices", remedy).items()
        )

    def trouble(self, place: Place, name: str, value: Any) -> Devices:
        if value is None:
            return Devices(name=name)
        if isinstance(value, str):
            path = str(self.folder / self.text(place, value))
            for seed in self.seeds() if "{seed}" in path else (0,):
                self.there(place, path.replace("{seed}", str(seed)))
            return Devices(name=name, path=path)
        if not isinstance(value, list) or not value:
            self.refuse(place, "is no device trace", "give null, a file, or a list of lines")
        for i, line in enumerate(value):
            here = (*place, i)
            if not isinstance(line, dict):
                self.refuse(here, "is no line of a device trace", f"give {', '.join(LINE_FIELDS)}")
            for key, one in line.items():
                if key not in LINE_FIELDS:
                    self.refuse((*here, key), "no such field", f"give {', '.join(LINE_FIELDS)}")
                if key not in ("kind", "gpu", "node") and not self.is_number(one):
                    self.refuse((*here, key), f"{one!r:.40}", "give a finite number")
            for key in ("at_s", "kind"):  # which of the others a kind has, its reader knows
                if key not in line:
                    self.refuse((*here, key), "missing", "every line has at_s and kind")
            self.text((*here, "kind"), line["kind"])
            for key in ("gpu", "node"):
                if not isinstance(line.get(key, ""), str):
                    self.whole((*here, key), line[key], 0, MOST_GPUS)
        places = tuple(self.document.lines[(*place, i)] for i in range(len(value)))
        return Devices(name=name, lines=tuple(value), places=places)

    def is_number(self, value: Any) -> bool:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
