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
    assert len(set(files)) == len(files)
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


def test_nothing_interpreted_inherits_from_what_is_compiled() -> None:
    """Python refuses such a class when it is made, in the compiled form alone."""
    files = hook().compiled_files(ROOT)
    classes = {
        node.name
        for name in files
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert "TabledCost" in classes
    # The links batchgen/sim and batchgen/exec lead to these.
    sources = {"batchgen": "batchgen", "sim": "batchgen/sim", "exec": "batchgen/exec"}
    others = {
        path
        for folder, package in sources.items()
        for path in (ROOT / folder).rglob("*.py")
        if f"{package}/{path.relative_to(ROOT / folder)}" not in files
        and "sim" not in path.relative_to(ROOT).parts[1:2]
    }
    for path in sorted(others):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert not bases & classes, f"{path}: {node.name} inherits from {bases & classes}"


RUN = """
import sys
import batchgen
from batchgen.cli import main
print(batchgen.is_compiled(), file=sys.stderr)
sys.exit(main(sys.argv[1:]))
"""


SMALL = "--model llama-3.1-8b --gpu h100 --gpus 8 --layout dp8 --trace {trace} --limit 1500 "
RUNS = (
    *(SMALL + f"--policy {preset}" for preset in ("static", "orca", "vllm", "batchgen")),
    SMALL + "--policy batchgen --set plan.depth=2 --set tail.part=run-out",
    SMALL + "--policy vllm --set plan.depth=2 --arrivals trace --faults {faults}",
    SMALL + "--policy batchgen --arrivals trace --faults {faults}",
    SMALL + "--policy vllm --set plan.prefill_engines=3 --set placement.part=least-work",
    SMALL + "--policy vllm --set plan.prefill_engines=3 --arrivals trace",
    SMALL + "--policy vllm --set order.part=by-prompt --set predictor.part=mean-seen",
    "--model qwen3-32b --gpu h100 --gpus 8 --layout tp2 --trace {rounds} --policy batchgen",
    "--model llama-3.1-8b --gpu h100 --gpus 2 --layout dp2 --trace {rounds} --policy vllm "
    "--set plan.depth=2",
    "--model qwen3-30b-a3b --gpu h100 --gpus 16 --layout dpa8+ep8 --trace {trace} --limit 4000",
    "--model qwen3-30b-a3b --gpu h100 --gpus 4 --layout tp2 --trace {trace} --limit 900 "
    "--costs measured",
)
"""Arguments of `batchgen sim`: presets, depth, troubles, roles, lanes, stages, lockstep engines."""


def material(folder: Path) -> dict[str, str]:
    """The files that `RUNS` name."""
    rounds, faults = folder / "rounds.jsonl", folder / "faults.jsonl"
    subprocess.run(
        [sys.executable, "-P", "-c", RUN, "trace", "generate", "-o", str(rounds), "-n", "900",
         "--prompt-tokens", "lognormal:mean=900,sigma=1", "--output-tokens", "300",
         "--rounds", "3", "--follow-up-tokens", "40", "--round-output-tokens", "80",
         "--wait-s", "0.5"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    faults.write_text(
        '{"at_s": 5, "kind": "slow", "gpu": 1, "factor": 3}\n'
        '{"at_s": 9, "kind": "lost", "gpu": 2}\n'
        '{"at_s": 9, "kind": "notice", "gpu": 3, "deadline_s": 12}\n'
        '{"at_s": 20, "kind": "back", "gpu": 2}\n'
    )
    trace = ROOT / "traces" / "azure-conv-2023.jsonl.gz"
    return {"trace": str(trace), "rounds": str(rounds), "faults": str(faults)}


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
    files = material(tmp_path)
    for number, arguments in enumerate(RUNS):
        given = arguments.format(**files).split()
        logs = []
        for path in (ROOT, compiled):
            out = tmp_path / f"{number}-{len(logs)}"
            done = subprocess.run(
                [sys.executable, "-P", "-c", RUN, "sim", *given,
                 "--log", "full", "--progress", "off", "--out", str(out)],
                env={**os.environ, "PYTHONPATH": str(path)},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stderr.split()[0] == str(path is compiled)
            logs += [sorted((p.name, p.read_bytes()) for p in out.rglob("*.jsonl*"))]
        assert logs[0]
        assert logs[0] == logs[1], arguments
    pytest_command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_command, "tests/core", "tests/simulation", "tests/check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(compiled)},
        check=False,
    )
    assert done.returncode == 0
