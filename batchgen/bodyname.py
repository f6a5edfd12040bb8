"""Finds a body by its name, `module:function`. It runs none."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

from batchgen.coroutine import BodyFactory
from batchgen.errors import UserError
from batchgen.oneline import named, one_line


def load_body(name: str) -> BodyFactory:
    """The generator function `module:function`; the module is an installed one or lies in the
    current folder. Raises UserError when there is none, or when importing it fails."""
    module_name, colon, function_name = name.partition(":")
    parts = [*module_name.split("."), function_name]
    if not colon or not all(part.isidentifier() for part in parts):
        raise UserError(f"--body is '{name}'", remedy="give module:function")
    doing = f"{module_name} cannot be imported"
    try:
        with _current_folder():
            module = importlib.import_module(module_name)
        doing = f"{function_name} cannot be looked up in {module_name}"
        body = getattr(module, function_name, None)
        is_body = inspect.isgeneratorfunction(body)
        place = one_line(getattr(module, "__file__", None) or module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything, SystemExit too
        raise UserError(
            f"--body {name}: {doing} ({named(error)})",
            remedy="install its package, or run in its folder",
        ) from None
    if not is_body:
        what = "is missing" if body is None else "is no generator function"
        raise UserError(
            f"--body {name}: {function_name} {what} in {place}",
            remedy="see docs/writing-a-body.md",
        )
    return cast(BodyFactory, body)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules are found in the current folder, which stays the current one whatever they do."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)
        os.chdir(here)
