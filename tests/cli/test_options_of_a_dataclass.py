"""A command made of a dataclass is the command that its signature would be."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

from batchgen.cli.options import command

Names = Annotated[list[str] | None, typer.Option("--set", metavar="A=B", help="May be repeated.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    path: Annotated[Path, typer.Option("--input", "-i", help="A file.")]
    names: Names = None
    number: Annotated[int, typer.Option(min=1, help="Of threads.")] = 4
    short: Annotated[bool, typer.Option("--short", "-q", help="Less.")] = False


def apps(seen: list[tuple[Any, ...]]) -> list[typer.Typer]:
    """The same command, made of the dataclass and written out."""
    ours, plain = (typer.Typer(add_completion=False, rich_markup_mode=None) for _ in range(2))

    @command(ours, Given, name="run")
    def of_fields(asked: Given) -> int:
        """Do something.

        To a file."""
        seen.append(astuple(asked))
        return 7

    @plain.command(name="run")
    def written_out(
        path: Annotated[Path, typer.Option("--input", "-i", help="A file.")],
        names: Names = None,
        number: Annotated[int, typer.Option(min=1, help="Of threads.")] = 4,
        short: Annotated[bool, typer.Option("--short", "-q", help="Less.")] = False,
    ) -> int:
        """Do something.

        To a file."""
        seen.append((path, names, number, short))
        return 7

    return [ours, plain]


@pytest.mark.parametrize(
    ("args", "runs"),
    [
        ("-i x", True),
        ("--input x --set a=b --set c=d --number 9 -q", True),
        ("", False),
        ("-i x --number 0", False),
        ("-i x --unknown", False),
        ("--help", False),
    ],
)
def test_it_reads_and_refuses_as_the_function_does(
    args: str, runs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for number in range(2):
        seen: list[tuple[Any, ...]] = []
        try:
            ended: Any = get_command(apps(seen)[number]).main(
                args.split(), prog_name="p", standalone_mode=False
            )
        except Exception as error:
            ended = (type(error), str(error))
        results.append((seen, ended, capsys.readouterr()))
    assert results[0] == results[1]
    assert bool(results[0][0]) == runs
