"""The tree itself: links, the wheel's content, words that must not be in it, start-up."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Written in pieces, so that this file may be searched too.
FORBIDDEN = re.compile("/" + r"work(?![a-z])|\.\." + "/shared")


def tracked() -> list[Path]:
    """Files that git knows; skips outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.parametrize("name", ["sim", "exec"])
def test_links_are_relative_links(name: str) -> None:
    link = ROOT / "batchgen" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_backends_are_one_module_each() -> None:
    code = (
        "import batchgen.sim, batchgen.exec, sys; "
        "assert 'sim' not in sys.modules and 'exec' not in sys.modules; "
        "print(batchgen.sim.__name__, batchgen.exec.__name__)"
    )
    for folder in (ROOT, ROOT.parent):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.stdout.split() == ["batchgen.sim", "batchgen.exec"], done.stderr


def test_backends_do_not_import_each_other() -> None:
    for here, other in (("sim", "exec"), ("exec", "sim")):
        for path in (ROOT / here).rglob("*.py"):
            assert f"batchgen.{other}" not in path.read_text(encoding="utf-8"), path


DOORS = ("cli", "api.py", "serve")
"""How users come in: the command line, Python, a server. They call backends; nothing else does."""


def test_core_imports_no_backend_behind_the_doors() -> None:
    pattern = re.compile(r"^\s*(from|import) (batchgen\.(sim|exec)\b|torch|simpy|triton)", re.M)
    for path in (ROOT / "batchgen").rglob("*.py"):
        if path.relative_to(ROOT).parts[1] in (*DOORS, "sim", "exec"):
            continue
        assert not pattern.search(path.read_text(encoding="utf-8")), path


def test_nothing_names_the_machine_it_was_written_on() -> None:
    for path in tracked():
        if path.is_symlink() or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        name = str(path.relative_to(ROOT))
        found = FORBIDDEN.search(text)
        assert found is None, f"{name} contains {found}"


def test_python_files_are_ascii_except_where_bytes_are_the_subject() -> None:
    for path in tracked():
        if path.suffix == ".py" and path.parts[-2] in ("runtime", "policy", "memory", "sim"):
            assert path.read_text(encoding="utf-8").isascii(), path


def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    """Built offline with the build backend of pyproject.toml; links become plain folders."""
    pytest.importorskip("hatchling")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for folder, name in (
        ("batchgen", "batchgen"),
        ("sim", "batchgen/sim"),
        ("exec", "batchgen/exec"),
    ):
        for path in (ROOT / folder).rglob("*"):  # does not follow the links
            hidden = any(part.startswith((".", "__pycache__")) for part in path.parts[-3:])
            if path.is_file() and not hidden and path.suffix != ".pyc":
                expected.add(f"{name}/{path.relative_to(ROOT / folder).as_posix()}")
    assert packed == expected
    assert {"batchgen/sim/cluster.py", "batchgen/exec/worker.py"} <= packed
    assert {"batchgen/catalog/models.yaml", "batchgen/py.typed"} <= packed


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "batchgen", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "batchgen")


def test_bench_refuses_unknown_measurements() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "batchgen", "bench", "--only", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "headline" in done.stderr
    assert "Traceback" not in done.stderr


CODE_IN_DATA = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "sqlitedict"}


def test_no_code_comes_from_data() -> None:
    """Nothing that is read can run: no pickle in any form, no text as a program, no shell."""
    found = []
    for folder in ("batchgen", "sim", "exec"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(ROOT)}: {one}" for one in _runs_data(tree)]
    assert found == []


def _runs_data(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (name for name in names if name.split(".")[0] in CODE_IN_DATA)
        elif isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            options = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if text in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"):
                yield text
            if text in ("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                yield text
            for name in ("shell", "allow_pickle", "trust_remote_code"):
                if options.get(name, "False") != "False":
                    yield f"{text}({name}={options[name]})"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "eval(text)",
        "torch.load(path, weights_only=True)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_code_from_data_would_be_found(text: str) -> None:
    assert list(_runs_data(ast.parse(text)))
