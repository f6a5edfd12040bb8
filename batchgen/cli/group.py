"""The root command: names and one-line helps without importing any subcommand.

A subcommand is the typer app `app` of `batchgen.cli.<name>`, imported when it is invoked. Commands
whose module is not there are not listed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

COMMANDS = {
    "sim": "Simulate a trace on a cluster, under one policy or several.",
    "sweep": "Simulate many combinations, on all cores, in one table.",
    "exec": "Run a file of prompts on this machine's devices.",
    "job": "Look at batch jobs: how they stand, what is answered so far.",
    "serve": "Serve files and batches of OpenAI's API on this machine.",
    "validate": "Check runs: replay decisions, compare simulation with execution.",
    "profile": "Measure this machine into a profile that sim and plan read.",
    "plan": "Choose the layout and the static plan for a job.",
    "policy": "List policies and their parts; check parts of one's own.",
    "trace": "Import, generate, describe and plot traces.",
    "model": "Show what a model costs: parameters, FLOPs, bytes, KV per token.",
    "report": "Tables, figures and timelines of finished runs.",
    "bench": "Measure batchgen's own speed.",
}


def module_of(name: str) -> str:
    return f"batchgen.cli.{name}"


class LazyGroup(TyperGroup):
    """A group that answers `--help` from `COMMANDS` and imports a command when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in COMMANDS if find_spec(module_of(name)) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with name and help: what listings and completion need."""
        if cmd_name not in self.list_commands(ctx):
            return None
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command; the import happens here."""
        # typer suggests names from this mapping when one is mistyped.
        self.commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or stand_in is None:
            return name, stand_in, rest
        command = get_command(import_module(module_of(name)).app)
        command.name = name
        return name, command, rest


def build() -> Any:
    """The root command object, ready for `.main(args=...)`."""
    app = typer.Typer(
        cls=LazyGroup, add_completion=True, no_args_is_help=True, rich_markup_mode=None
    )
    app.callback()(_root)
    return get_command(app)


def _version(value: bool) -> None:
    if value:
        from batchgen import __version__, is_compiled

        typer.echo(f"batchgen {__version__}" + (", compiled" if is_compiled() else ""))
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")
    ] = False,
) -> None:
    """Plan and run offline (batch) LLM inference: simulate a cluster, or run on real devices.

    Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 done with error rows, 2 usage or
    input, 3 interrupted, 4 internal error.
    """
