"""Compiles the scheduler and the simulator's inner loop into a wheel, when asked to.

    BATCHGEN_MYPYC=1 pip install .

The modules of `COMPILED` go through mypyc: the same Python, the same decisions, as C. Without the
variable nothing is compiled, and an editable install never is, so that what one edits is what runs.
The Python files stay in the wheel, for tracebacks.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILED = (
    "batchgen/logbook.py",
    "batchgen/sequence.py",
    "batchgen/memory",
    "batchgen/runtime",
    "batchgen/cost/engine_profile.py",
    "batchgen/cost/experts.py",
    "batchgen/cost/measured.py",
    "batchgen/cost/pipeline.py",
    "batchgen/cost/profile.py",
    "batchgen/cost/roofline.py",
    "batchgen/cost/table.py",
    "batchgen/cost/tabled.py",
    "batchgen/sim/cluster.py",
    "batchgen/sim/device.py",
    "batchgen/sim/flight.py",
    "batchgen/sim/hostlink.py",
    "batchgen/sim/mishaps.py",
    "batchgen/sim/passtimes.py",
    "batchgen/sim/pipeflight.py",
    "batchgen/sim/pipeline.py",
    "batchgen/sim/recorder.py",
    "batchgen/sim/rowbook.py",
    "batchgen/sim/run.py",
    "batchgen/sim/running.py",
)
"""Files and folders. Not among them: msgspec structs (they need real classes), and the parts of
policies (users inherit from them)."""


def compiled_files(root: Path) -> list[str]:
    """Paths of the modules to compile, relative to `root`, sorted."""
    found: list[Path] = []
    for name in COMPILED:
        path = root / name
        found += path.rglob("*.py") if path.is_dir() else [path]
    return sorted(str(p.relative_to(root)) for p in found if p.name != "__init__.py")


def compile_into(root: Path, folder: Path) -> list[Path]:
    """Compile with mypyc and the C compiler; the libraries, at their places below `folder`."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    with contextlib.chdir(root):
        modules = mypycify(
            ["--cache-dir", str(folder / "cache"), *compiled_files(root)],
            opt_level="3",
            target_dir=str(folder / "c"),
            group_name="batchgen",
        )
        build = Distribution({"name": "batchgen", "ext_modules": modules}).get_command_obj(
            "build_ext"
        )
        build.build_lib, build.build_temp = str(folder / "lib"), str(folder / "o")
        build.ensure_finalized()
        build.run()
    return sorted(path for path in (folder / "lib").rglob("*") if path.is_file())


class CompiledHook(BuildHookInterface):  # type: ignore[misc]
    """hatchling calls this for every wheel."""

    PLUGIN_NAME = "custom"

    @property
    def _wanted(self) -> bool:
        return os.environ.get("BATCHGEN_MYPYC", "0") not in ("", "0")

    def dependencies(self) -> list[str]:
        """What the build itself needs beside hatchling."""
        if not self._wanted:
            return []
        # mypy reads the types of what the compiled modules import.
        return ["mypy>=2.4,<3", "setuptools>=75", "numpy>=2.0", "msgspec>=0.19", "simpy>=4.1"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries to a wheel that is not editable."""
        if not self._wanted or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        for path in compile_into(Path(self.root), folder):
            build_data["force_include"][str(path)] = str(path.relative_to(folder / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
