"""How a row without a prompt of its own gets one: from a column, or a template over its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgen.errors import UserError
from batchgen.job.prompts import RowError

PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`template` has columns in braces (`{question}`; `{{` is a brace). chat: the prompt is what
    the user says, after `system` if there is one; else it is text to be completed."""

    template: str
    chat: bool = False
    system: str | None = None

    def columns(self) -> list[str]:
        """Columns that the template names, each once."""
        names = (match[1] for match in PLACE.finditer(self.template))
        return list(dict.fromkeys(name for name in names if name is not None))

    def check(self, path: Path, known: Sequence[str] | None) -> None:
        """Raises UserError where a file with these columns (None: each row has its own) has not
        those of the template."""
        missing = [] if known is None else [name for name in self.columns() if name not in known]
        if missing:
            raise UserError(
                f"{path} has no column '{missing[0]:.60}'",
                remedy=f"its columns are {', '.join(known or ())}",
            )

    def body(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with a prompt in the place of its columns. Raises RowError if one is missing."""
        used = self.columns()
        texts = {name: _text(row, name) for name in used}
        text = PLACE.sub(lambda match: _filled(match, texts), self.template)
        rest = {name: value for name, value in row.items() if name not in used}
        if not self.chat:
            return rest | {"prompt": text}
        said = [] if self.system is None else [{"role": "system", "content": self.system}]
        return rest | {"messages": [*said, {"role": "user", "content": text}]}


def make_shape(
    column: str | None, template: str | None, *, chat: bool, system: str | None
) -> Shape | None:
    """From options of the command line; None when rows have prompts of their own. Raises
    UserError."""
    if column is not None and template is not None:
        raise UserError(
            "--prompt-column and --prompt-template exclude each other",
            remedy="name the column in the template",
        )
    if column is None and template is None:
        if chat or system is not None:
            raise UserError(
                f"{'--chat' if chat else '--system'} is for prompts from columns",
                remedy="add --prompt-column or --prompt-template",
            )
        return None
    if system is not None and not chat:
        raise UserError("--system is for chats", remedy="add --chat")
    if column is not None:
        escaped = column.replace("{", "").replace("}", "")
        if escaped != column or not column:
            raise UserError(
                f"--prompt-column '{column}' is no name of a column", remedy="leave braces out"
            )
        template = f"{{{column}}}"
    assert template is not None
    for match in PLACE.finditer(template):
        if match[0] in "{}" or match[1] == "":
            raise UserError(
                f"--prompt-template has '{match[0]}' at character {match.start() + 1}",
                remedy="write columns as {name}, and a brace as {{ or }}",
            )
    shape = Shape(template=template, chat=chat, system=system)
    if not shape.columns():
        raise UserError("--prompt-template names no column", remedy="for instance {question}")
    return shape


def _filled(match: re.Match[str], texts: Mapping[str, str]) -> str:
    return match[0][0] if match[1] is None else texts[match[1]]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise RowError("missing_field", f"column '{name:.60}' is missing")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError("invalid_field", f"column '{name:.60}' is no text")
    return str(value)
