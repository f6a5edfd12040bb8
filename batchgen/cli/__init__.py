"""The `batchgen` command: entry point and exit codes. Subcommands load only when they are called.

Exit codes: 0 done, 1 done with error rows, 2 usage or input, 3 interrupted, 4 internal error.
A subcommand module exports `app`; what its command returns (an int or None) is the exit code.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from batchgen.cli import unraisable
from batchgen.errors import MOST_MESSAGE, BatchgenError, Unfinished, UserError
from batchgen.oneline import brief, named, one_line

OK, ERROR_ROWS, USAGE, INTERRUPTED, INTERNAL = range(5)
MOST = 400  # characters of an internal error's text
UNREAD = 141  # what a shell says of a program that SIGPIPE ended
SIGINT_EXIT = 130  # what typer makes of Ctrl-C
AGAIN_S = 0.01  # until a signal that came at a bad moment comes again
STOPS = ("stopped", "too_many_errors")  # codes of jobs that ended as they were told to

# Import name of an optional dependency -> the extra that brings it.
EXTRAS = {
    "torch": "exec",
    "safetensors": "exec",
    "tokenizers": "exec",
    "jinja2": "exec",
    "triton": "gpu",
    "ray": "cluster",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
}

# What the machine says of a path, wherever it is used; none is a bug of ours.
MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ETXTBSY),
    *(errno.EDQUOT, errno.EFBIG, errno.ENOSPC),
    *(errno.EIO, errno.ENXIO, errno.ESTALE),
    # Of these an input is told where it is read; here a folder was taken away meanwhile.
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)
MOST_SHOWN = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. User mistakes are one line on stderr."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when the process began: what is said goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # What a locale without these characters cannot show is shown as its escape.
            stream.reconfigure(errors="backslashreplace")
    code = _run(argv)
    try:
        sys.stdout.flush()  # while an error of it can still be told
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        _unread()  # what is left of it, which Python would try to write once more
        return code if code > ERROR_ROWS else _explain(error)
    return code


def _run(argv: Sequence[str] | None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args  # accepted in any place, so that it can be appended to a failed line
    args = [arg for arg in args if arg != "--debug"]
    try:
        with _ended_by_signals():
            _check_text(args)
            from batchgen.cli.group import build

            code = build().main(args=args, prog_name="batchgen", standalone_mode=False)
    except KeyboardInterrupt:
        code = SIGINT_EXIT
    except BrokenPipeError:  # whoever read what we print has had enough
        return _unread()
    except SystemExit as error:  # not ours: the command line is parsed without it
        if isinstance(error.__context__, BrokenPipeError):  # what rich makes of it
            return _unread()
        _say(f"error: code of a part or a body left by {named(error)}; take that out of it")
        return USAGE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(error)
    if code == SIGINT_EXIT:
        _say("interrupted")
        return INTERRUPTED
    return code if isinstance(code, int) else OK


def _unread() -> int:
    """Nobody reads standard output any more: the rest goes nowhere, and Python's last flush too."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNREAD


class _Interrupted(KeyboardInterrupt):
    """A class of its own: where a KeyboardInterrupt passes an exec() of text (every dataclass that
    torch defines), CPython 3.11 ends the process by SIGINT though we handle it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end a command alike: temporary files go, exit code 3. A second one
    kills."""
    is_ending = False

    def again(number: int) -> None:
        timer = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_ending
        if _is_finaliser(frame):
            again(number)
            return
        signal.signal(number, before[number])
        is_ending = True
        raise _Interrupted(number)

    def lost(error: BaseException) -> bool:
        """Whether it is ours, and Python would only print it: the signal comes again, later."""
        nonlocal is_ending
        if not isinstance(error, _Interrupted):
            return False
        is_ending = False
        signal.signal(error.number, interrupt)
        again(error.number)
        return True

    before: dict[int, Any] = {}
    unraisable.take(lost)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            # One that is ignored (nohup) or handled by somebody else stays so.
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = handler
                signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:
        if is_ending:  # what it became on its way: CPython wraps what `__set_name__` raises
            raise _Interrupted(0) from error
        raise
    finally:
        unraisable.leave(lost)
        for each, handler in before.items():
            signal.signal(each, handler)


def _is_finaliser(frame: FrameType | None) -> bool:
    """Whether a `__del__` runs: Python prints what is raised there, and the command would go on."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def _check_text(args: Sequence[str]) -> None:
    """Bytes that are no text in this locale can be written into no file of ours."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"argument {os.fsencode(arg)!r} is not text in UTF-8",
                remedy="write it in UTF-8; a file of such a name must be renamed",
            ) from None


def _explain(error: Exception) -> int:
    """One line for an exception that reached the top, and its exit code."""
    if isinstance(error, UserError):
        if isinstance(error, Unfinished):
            _say(f"{'' if error.code in STOPS else 'error: '}{one_line(error)}")
            return INTERRUPTED
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
            told = brief(one_line(form()).rstrip("."), MOST_MESSAGE)
            _say(f"error: {told}; see '{brief(command, MOST_MESSAGE)} --help'")
        return USAGE
    if type(error).__name__ == "Abort":
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").split(".")[0]
        if name in EXTRAS:
            _say(f"error: this needs {name}; install it by: pip install 'batchgen[{EXTRAS[name]}]'")
            return USAGE
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # tempfile's
        _say("error: no folder for temporary files can be written; free some disk, or set TMPDIR")
        return USAGE
    if isinstance(error, OSError) and error.errno in MACHINE:
        where = f"{str(error.filename)[:MOST_SHOWN]}: " if error.filename is not None else ""
        _say(f"error: {one_line(where + str(error.strerror))}; choose another path or free it")
        return USAGE
    if isinstance(error, MemoryError) or "t allocate memory" in str(error):  # torch's, by its text
        _say("error: memory is short; free some, raise its limit, or choose a smaller model or job")
        return USAGE
    if isinstance(error, BatchgenError):
        what = f"internal error ({error.code}): {one_line(error)}"
    else:
        what = f"internal error, a bug in batchgen: {named(error, MOST)}"
    _say(f"{what}; repeat with --debug for the traceback")
    return INTERNAL


def _say(line: str) -> None:
    with suppress(OSError):  # nobody can be told that nobody can be told
        print(line, file=sys.stderr)
