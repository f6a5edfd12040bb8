"""A YAML file as plain values with the line of each: enough of YAML for a list of settings. It
knows no setting.

Anchors, tags of one's own and keys that stand twice are refused: the first make small files grow
without end, the last hide what was meant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from batchgen.errors import DataError, UserError
from batchgen.paths import check_input

MOST_BYTES = 1 << 20
MOST_DEPTH = 8
PLAIN = ("str", "int", "float", "bool", "null", "timestamp")

Place = tuple[str | int, ...]
"""The way to a value: keys of mappings and numbers of list entries."""


class Document:
    """`data` of a file, and where in it each value stands."""

    def __init__(self, path: str, data: dict[str, Any], lines: dict[Place, int]) -> None:
        self.path, self.data, self.lines = path, data, lines

    def refuse(self, place: Place, message: str, remedy: str) -> NoReturn:
        """Raises DataError for the value at `place`, or for what holds it where there is none."""
        known = place
        while known not in self.lines:
            known = known[:-1]
        raise DataError(
            message,
            path=self.path,
            line=self.lines[known],
            field=".".join(str(part) for part in place) or None,
            remedy=remedy,
        )


def read_document(path: str) -> Document:
    """The mapping of a YAML file. Raises UserError and DataError."""
    import yaml

    check_input("sweep", path, remedy="give a .yaml file, see docs/sweeps.md")
    raw = Path(path).read_bytes()
    if len(raw) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES} bytes", remedy="split the sweep")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError("is not UTF-8", path=path, line=line, remedy="save it as UTF-8") from None
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            anchor = getattr(event, "anchor", None)
            if anchor is not None:
                mark: Any = event.start_mark
                line = mark.line + 1
                remedy = "write the value out"
                raise DataError(f"anchor '{anchor:.40}'", path=path, line=line, remedy=remedy)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise DataError(
                "is empty", path=path, line=1, remedy="give trace, model, gpus and policies"
            )
        reader = _Reader(path)
        data = reader.value(node, ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or "unreadable"
        raise DataError(
            f"is not valid YAML ({what})",
            path=path,
            line=None if mark is None else mark.line + 1,
            remedy="correct the line",
        ) from None
    except RecursionError:
        raise DataError(
            "brackets nested too deep", path=path, line=1, remedy="flatten it"
        ) from None
    document = Document(path, data, reader.lines)
    if not isinstance(data, dict):
        document.refuse((), "is no mapping", "write one 'key: value' per line")
    return document


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: dict[Place, int] = {}

    def value(self, node: Any, place: Place) -> Any:
        import yaml

        line = node.start_mark.line + 1
        self.lines[place] = line
        if len(place) > MOST_DEPTH:
            self._refuse(line, place, "is nested too deep", "flatten it")
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                at = key_node.start_mark.line + 1
                if not isinstance(key, str) or key_node.tag != "tag:yaml.org,2002:str":
                    self._refuse(at, place, "has a key that is no text", "put it in quotes")
                if key in found:
                    self._refuse(at, (*place, key), "stands twice", "keep one of them")
                found[key] = self.value(value_node, (*place, key))
                self.lines[(*place, key)] = at
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.value(one, (*place, i)) for i, one in enumerate(node.value)]
        if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN:
            self._refuse(line, place, f"has the tag {node.tag:.40}", "leave it out")
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            self._refuse(line, place, f"'{node.value:.40}' cannot be read", "put it in quotes")

    def _refuse(self, line: int, place: Place, message: str, remedy: str) -> NoReturn:
        field = ".".join(str(part) for part in place) or None
        raise DataError(message, path=self.path, line=line, field=field, remedy=remedy)
