"""The compiled form: what may be compiled, and that it decides what the Python decides."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def hook() -> ModuleType:
    """hatch_build.py as a module."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def type_names(tree: ast.Module) -> set[str]:
    """What a module imports for the type checker only."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for one in ast.walk(node):
                if isinstance(one, ast.Import | ast.ImportFrom):
                    found |= {(alias.asname or alias.name).split(".")[0] for alias in one.names}
    return found


def test_what_is_compiled_may_be() -> None:
    """mypyc makes no msgspec structs and no class that inherits from an interpreted one; what it
    makes crashes on import if a record has a field of a type that only the type checker knows."""
    files = hook().compiled_files(ROOT)
    assert {"batchgen/runtime/core.py", "batchgen/sim/flight.py"} <= set(files)
    assert not [name for name in files if name.startswith(("batchgen/policy/", "batchgen/exec/"))]
    for name in files:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        hidden = type_names(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = " ".join(ast.unparse(base) for base in node.bases)
            assert "Struct" not in bases, f"{name}: {node.name}"
            assert "simpy" not in bases.lower(), f"{name}: {node.name}"
            record = "NamedTuple" in bases or any(
                "dataclass" in ast.unparse(one) for one in node.decorator_list
            )
            fields = [one.annotation for one in node.body if isinstance(one, ast.AnnAssign)]
            words = {
                word.id
                for field in fields
                for word in ast.walk(field)
                if isinstance(word, ast.Name)
            }
            assert not (record and words & hidden), f"{name}: {node.name}: {words & hidden}"


RUN = """
import sys
import batchgen
from batchgen.cli import main
print(batchgen.is_compiled(), file=sys.stderr)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_compiled_form_decides_the_same(tmp_path: Path) -> None:
    """Decision logs are equal byte by byte, and the core's own tests hold."""
    pytest.importorskip("mypy")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "BATCHGEN_MYPYC": "1"},
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    compiled = tmp_path / "compiled"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(compiled)
    trace = str(ROOT / "traces" / "azure-conv-2023.jsonl.gz")
    for preset in ("static", "orca", "vllm", "batchgen"):
        logs = []
        for path in (ROOT, compiled):
            out = tmp_path / f"{preset}-{len(logs)}"
            done = subprocess.run(
                [sys.executable, "-P", "-c", RUN, "sim", "--trace", trace, "--limit", "1500",
                 "--gpus", "8", "--model", "llama-3.1-8b", "--gpu", "h100", "--policy", preset,
                 "--log", "full", "--progress", "off", "--out", str(out)],
                env={**os.environ, "PYTHONPATH": str(path)},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert done.stderr.split()[0] == str(path is compiled)
            logs += [sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl*"))]
        assert logs[0]
        assert logs[0] == logs[1], preset
    pytest_command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_command, "tests/core", "tests/simulation", "tests/check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(compiled)},
        check=False,
    )
    assert done.returncode == 0
