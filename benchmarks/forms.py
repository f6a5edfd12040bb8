"""Which batchgen the measurements import: the compiled one of build/compiled, or the checkout.

Children are told by PYTHONPATH. Standard library only, see machine.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILED = ROOT / "build" / "compiled"


def use(*, compiled: bool) -> None:
    """Let all children import one form. SystemExit when build/compiled is not made of the files of
    today."""
    if compiled:
        _check()
    os.environ["PYTHONPATH"] = str(COMPILED if compiled else ROOT)
    code = "import batchgen, sys; sys.exit(not batchgen.is_compiled())"
    found = subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
    if found != compiled:
        raise SystemExit("error: build/compiled holds no libraries of this Python; make compiled")


def plain() -> dict[str, str]:
    """An environment whose batchgen is the checkout, whatever `use` said."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def current() -> str:
    """ "compiled" or "python"."""
    return "compiled" if os.environ.get("PYTHONPATH") == str(COMPILED) else "python"


def _check() -> None:
    for folder in ("batchgen", "sim", "exec"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT)
            copy = COMPILED / (name if folder == "batchgen" else Path("batchgen") / name)
            if not COMPILED.is_dir():
                raise SystemExit(
                    "error: there is no build/compiled; run 'make compiled', or measure plain "
                    "Python with --python"
                )
            if not copy.is_file() or copy.read_bytes() != path.read_bytes():
                raise SystemExit(
                    f"error: build/compiled is not made of this {name}; run 'make compiled', "
                    "or measure plain Python with --python"
                )
