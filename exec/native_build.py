"""Builds the library of `native/` for this machine and keeps it; loads nothing.

It is kept in the user's cache folder. Its name holds a digest of all that shapes it, and one of its
own bytes: a file that was cut or damaged is not taken for it, and a name is only ever given to a
whole file, so that builders who meet do not harm each other.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from batchgen.oneline import one_line

FOLDER = Path(__file__).with_name("native")
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("g++", "c++", "clang++")
# __builtin_shufflevector came with g++ 12, _Float16 without AVX-512 with clang 15.
NEEDED = "needed: g++ 12 or newer, or clang++ 15 or newer"
NO_OPENMP = "its OpenMP is missing; for clang install libomp-dev"
BUILD_TIMEOUT_S = 300.0
MOST_SHOWN = 200  # characters of what a compiler says
_OPENMP = re.compile(r"-l[gi]?omp|\bomp\.h|fopenmp|libg?omp", re.IGNORECASE)
_TELLING = re.compile(r"\berror\b|cannot find|undefined|not found", re.IGNORECASE)


class CannotBuildError(Exception):
    """Why there is no library, in one line."""


def library_path() -> Path:
    """The library, whole; built unless it is there. Raises CannotBuildError."""
    compiler = _compiler()
    version = _run([*compiler, "--version"])
    files = sorted(file for file in FOLDER.iterdir() if file.suffix in (".cpp", ".h"))
    command = [*compiler, *FLAGS]
    parts = (
        *(file.read_bytes() for file in files),
        version,
        shlex.join(command).encode(),
        _processor().encode(),
    )
    key = _digest(b"\0".join(parts))
    try:
        folder = cache_folder()
        if (found := _whole(folder, key)) is not None:
            return found
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / "native.so"
            sources = [str(file) for file in files if file.suffix == ".cpp"]
            _run([*command, *sources, "-o", str(made)])
            target = folder / f"native-{key}-{_digest(made.read_bytes())}.so"
            made.replace(target)  # at once: nobody sees half a file
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise CannotBuildError(
            f"the compiled library cannot be kept ({error.strerror}{where}); set XDG_CACHE_HOME"
        ) from None
    return target


def _whole(folder: Path, key: str) -> Path | None:
    """The kept library of this key; files that are not what their name says are removed."""
    for path in sorted(folder.glob(f"native-{key}-*.so")):
        if path.stem.rpartition("-")[2] == _digest(path.read_bytes()):
            return path
        path.unlink(missing_ok=True)
    return None


def _compiler() -> list[str]:
    """The command of the compiler: CXX, which may hold options, or the first there is."""
    if given := os.environ.get("CXX", ""):
        try:
            words = shlex.split(given)
        except ValueError:
            words = []
        if not words or shutil.which(words[0]) is None:
            raise CannotBuildError(f"CXX is {given!r:.{MOST_SHOWN}}, which is not there")
        return words
    for name in COMPILERS:
        if shutil.which(name) is not None:
            return [name]
    raise CannotBuildError(f"there is no C++ compiler; {NEEDED}")


def _run(command: list[str]) -> bytes:
    """What the compiler prints. Raises CannotBuildError with the first line that tells why not."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=BUILD_TIMEOUT_S,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise CannotBuildError(f"{command[0]} took more than {BUILD_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise CannotBuildError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout
    said = done.stderr or done.stdout
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    telling = next(filter(_TELLING.search, lines), lines[0] if lines else f"exit {done.returncode}")
    remedy = NO_OPENMP if _OPENMP.search(telling) else NEEDED
    raise CannotBuildError(f"{command[0]} failed: {one_line(telling, MOST_SHOWN)}; {remedy}")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def cache_folder() -> Path:
    """A folder of this user that can be written."""
    try:
        given = os.environ.get("XDG_CACHE_HOME", "")
        # A relative one is to be ignored, says its specification.
        base = given if Path(given).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise CannotBuildError("there is no home folder; set XDG_CACHE_HOME") from None
    folder = Path(base) / "batchgen"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_ours(folder)
    return folder


def _check_ours(folder: Path) -> None:
    """What others can write is never loaded: they could put code of theirs under the name that we
    look for. Raises CannotBuildError."""
    for one, rights in ((folder, stat.S_IWGRP | stat.S_IWOTH), (folder.parent, stat.S_IWOTH)):
        state = one.stat()
        others = state.st_mode & rights and not state.st_mode & stat.S_ISVTX
        if others or state.st_uid not in (0, os.geteuid()):
            raise CannotBuildError(
                f"others can write {one}: nothing is loaded from it; take that right away (chmod "
                "go-w), or set XDG_CACHE_HOME to a folder of yours"
            )


def _processor() -> str:
    """What -march=native depends on: a home folder may serve machines of several kinds."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.machine() + platform.processor()
