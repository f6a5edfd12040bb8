"""Finds a body by its name, `module:function`. It runs none."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import cast

from batchgen.coroutine import BodyFactory
from batchgen.errors import UserError


def load_body(name: str) -> BodyFactory:
    """The generator function `module:function`; the module is an installed one or lies in the
    current folder. Raises UserError when there is none, or when importing it fails."""
    module_name, colon, function_name = name.partition(":")
    parts = [*module_name.split("."), function_name]
    if not colon or not all(part.isidentifier() for part in parts):
        raise UserError(f"--body is '{name}'", remedy="give module:function")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"--body {name}: {module_name} cannot be imported ({text:.200})",
            remedy="install its package, or run in its folder",
        ) from None
    finally:
        if here in sys.path:
            sys.path.remove(here)
    body = getattr(module, function_name, None)
    if not inspect.isgeneratorfunction(body):
        what = "is missing" if body is None else "is no generator function"
        raise UserError(
            f"--body {name}: {function_name} {what} in {module.__file__}",
            remedy="see docs/writing-a-body.md",
        )
    return cast(BodyFactory, body)
