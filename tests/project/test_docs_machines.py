"""The picture of the two machines names calls that exist, and is what its script draws."""

from __future__ import annotations

import importlib.util
import re
from functools import reduce
from pathlib import Path
from types import ModuleType

import pytest

from batchgen.check.case import Case, Row

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "batchgen" / "runtime"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw_machines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources(folder: str) -> str:
    return "".join(p.read_text(encoding="utf-8") for p in (RUNTIME / folder).glob("*.py"))


def test_the_calls_up_exist_and_are_made(script: ModuleType) -> None:
    cluster = Case(preset="vllm", rows=(Row(prompt=1, budget=1, output=1),)).runtime().cluster
    for name in (name for _, names in script.UP for name in names):
        reduce(getattr, name.split("."), cluster)
        assert re.search(rf"\b{name.split('.')[-1]}\(", sources("engine")), name


def test_the_calls_down_are_all_there(script: ModuleType) -> None:
    """Methods that change an engine, and functions of its files that the cluster imports."""
    names = {name for _, names in script.DOWN for name in names}
    cluster, engine = sources("cluster"), sources("engine")
    for name in names:
        assert re.search(rf"def {name}\((self|engine)\b", engine), name
        assert re.search(rf"\b{name}\(", cluster), name
    imported = set[str]()
    for group in re.findall(
        r"^from batchgen\.runtime\.engine\.\w+ import (\([^)]*\)|.*)", cluster, re.M
    ):
        imported |= set(re.findall(r"\b[a-z_]+\b", group))
    methods = set(re.findall(r"(?<![.\w])(?:engine|source|target|slow)\.([a-z_]+)\(", cluster))
    assert (imported | methods) - set(script.ASKED) <= names


def test_the_picture_has_what_the_script_says(script: ModuleType) -> None:
    picture = script.PICTURE.read_text(encoding="utf-8")
    for _, names in (*script.UP, *script.DOWN):
        assert ", ".join(names) in picture
    for name, what in (*script.CLUSTER_PARTS, *script.ENGINE_PARTS):
        assert name in picture
        assert what in picture


def test_every_file_of_the_cluster_is_in_the_picture(script: ModuleType) -> None:
    files = {p.stem for p in (RUNTIME / "cluster").glob("*.py")} - {"__init__", "machine"}
    parts = [name for names, _ in script.CLUSTER_PARTS for name in names.split(", ")]
    names = {name.rstrip("s") for name in parts}
    assert {name.rstrip("s") for name in files} <= names
