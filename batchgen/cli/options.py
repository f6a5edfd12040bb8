"""A command whose options are the fields of a dataclass. What each option is called and means says
its field; no option is named here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)

    import typer


def command(
    app: typer.Typer, options: type[Options], name: str | None = None
) -> Callable[[Callable[[Options], int]], Callable[[Options], int]]:
    """Makes a function of `options` a command of `app`; fields without a default are required.

    name: of the command, None: that of the function. `--help` begins with the function's docstring
    and lists the fields in their order.
    """

    def register(body: Callable[[Options], int]) -> Callable[[Options], int]:
        def run(**given: Any) -> int:
            return body(options(**given))

        hints = get_type_hints(options, include_extras=True)
        parameters = [
            Parameter(
                field.name,
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]
        # typer asks a function for its signature and its annotations.
        run.__name__, run.__doc__, run.__annotations__ = body.__name__, body.__doc__, hints
        vars(run)["__signature__"] = Signature(parameters)
        app.command(name=name)(run)
        return body

    return register
