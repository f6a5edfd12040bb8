"""The `batchgen` command: entry point and exit codes. Subcommands load only when they are called.

Exit codes: 0 done, 1 done with error rows, 2 usage or input, 3 interrupted, 4 internal error.
A subcommand module exports `app`; what its command returns (an int or None) is the exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from batchgen.errors import BatchgenError, UserError
from batchgen.oneline import named, one_line

OK, ERROR_ROWS, USAGE, INTERRUPTED, INTERNAL = range(5)
MOST = 1000  # characters of an error's text
SIGINT_EXIT = 130  # what typer makes of Ctrl-C

# Import name of an optional dependency -> the extra that brings it.
EXTRAS = {
    "torch": "exec",
    "safetensors": "exec",
    "tokenizers": "exec",
    "jinja2": "exec",
    "triton": "gpu",
    "ray": "cluster",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. User mistakes are one line on stderr."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args  # accepted in any place, so that it can be appended to a failed line
    args = [arg for arg in args if arg != "--debug"]
    try:
        from batchgen.cli.group import build

        code = build().main(args=args, prog_name="batchgen", standalone_mode=False)
    except KeyboardInterrupt:
        code = SIGINT_EXIT
    except SystemExit as error:  # not ours: the command line is parsed without it
        _say(f"error: code of a part or a body left by {named(error)}; take that out of it")
        return USAGE
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    if code == SIGINT_EXIT:
        _say("interrupted")
        return INTERRUPTED
    return code if isinstance(code, int) else OK


def _explain(error: Exception) -> int:
    """One line for an exception that reached the top, and its exit code."""
    if isinstance(error, UserError):
        _say(f"error: {one_line(error)}")
        return USAGE
    # typer's own errors, recognised by shape: their classes moved between typer versions.
    show, form = getattr(error, "show", None), getattr(error, "format_message", None)
    if callable(form):
        if type(error).__name__ == "NoArgsIsHelpError" and callable(show):
            show()
        else:
            context = getattr(error, "ctx", None)
            command = getattr(context, "command_path", "batchgen")
            _say(f"error: {one_line(form()).rstrip('.')}; see '{command} --help'")
        return USAGE
    if type(error).__name__ == "Abort":
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").split(".")[0]
        if name in EXTRAS:
            _say(f"error: this needs {name}; install it by: pip install 'batchgen[{EXTRAS[name]}]'")
            return USAGE
    if isinstance(error, BatchgenError):
        what = f"internal error ({error.code}): {one_line(error)}"
    else:
        what = f"internal error, a bug in batchgen: {named(error, MOST)}"
    _say(f"{what}; repeat with --debug for the traceback")
    return INTERNAL


def _say(line: str) -> None:
    print(line, file=sys.stderr)
