"""Errors that name flags of the command line, in the words of Python: `--prompt-column` is
`prompt_column` there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from batchgen.errors import UserError

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*)(?: (always|never|if-possible)\b)?")
OTHERWISE = {"job-dir": "folder", "set": "overrides"}
"""Flags whose options have names of their own."""


@contextmanager
def named_as_options(options: Collection[str]) -> Iterator[None]:
    """UserErrors raised inside name these options instead of their flags; other flags stay."""
    try:
        yield
    except UserError as error:
        error.message = with_options(error.message, options)
        error.remedy = with_options(error.remedy, options)
        error.args = (f"{error.message}; {error.remedy}" if error.remedy else error.message,)
        raise


def with_options(text: str, options: Collection[str]) -> str:
    """The text with names of options where it has flags of them."""

    def option(match: re.Match[str]) -> str:
        name = OTHERWISE.get(match[1], match[1].replace("-", "_"))
        if name not in options:
            return match[0]
        return name if match[2] is None else f'{name}="{match[2]}"'

    return FLAG.sub(option, text)
