"""`make gpu-check` without a GPU: what it would do, how pieces end, what is kept and written."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"
FOUND = {
    "missing": [],
    "versions": {"torch": "2.11.0"},
    "gpu": {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 1 << 36},
}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The scripts, which import each other by name as in their folder."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: _load(name) for name in ("pieces", "summary", "check")}
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("pieces", "summary", "check", "machine"):
            sys.modules.pop(name, None)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "check.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )


def test_a_dry_run_says_what_it_would_do_and_why_it_cannot() -> None:
    done = check("--dry-run")
    assert done.returncode == 0, done.stderr
    for label in ("tests/kernels", "tests/gpu", "ceilings/all", "kernels/attention"):
        assert label in done.stdout
    assert "in the way: there is no CUDA device that torch can use" in done.stdout


def test_only_takes_stages_and_pieces(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    every = modules["pieces"].pieces(tmp_path)
    found = modules["pieces"].chosen(every, "ceilings, kernels/small")
    assert [piece.label for piece in found] == ["ceilings/all", "kernels/small"]
    assert modules["pieces"].chosen(every, None) == every
    assert len({piece.label for piece in every}) == len(every)
    with pytest.raises(ValueError, match="--only 'nothing' is none of "):
        modules["pieces"].chosen(every, "nothing")


def test_mistakes_are_one_line() -> None:
    for arguments in ((), ("--only", "nothing")):
        done = check(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")


def piece(modules: dict[str, ModuleType], name: str, code: str, **options: Any) -> Any:
    command = (sys.executable, "-c", code)
    options = {"limit_s": 30.0, **options}
    return modules["pieces"].Piece(stage="cells", name=name, command=command, **options)


def test_pieces_end_as_they_end(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    environment = modules["pieces"].paths(os.environ)

    def ends(name: str, code: str, left_s: float = 30.0, **options: Any) -> dict[str, Any]:
        one = piece(modules, name, code, **options)
        entry: dict[str, Any] = modules["check"].run(one, left_s, tmp_path, environment)
        return entry

    write = f"open({str(tmp_path / 'x.json')!r}, 'w').write('{{\"summary\": \"fast\"}}')"
    good = ends("good", f"print('hello'); {write}", gives="x.json")
    assert (good["status"], good["exit_code"]) == ("done", 0)
    assert good["result"] == {"summary": "fast"}
    assert good["output"] == "hello\n"
    # What an earlier run left is no result of this one.
    silent = ends("silent", "pass", gives="x.json")
    assert (silent["status"], silent["result"]) == ("failed", None)
    assert ends("bad", "raise SystemExit(3)")["exit_code"] == 3
    assert ends("bad", "raise SystemExit(3)")["status"] == "failed"
    half = f"{write}; import time; time.sleep(60)"
    for limits in ({"limit_s": 2.0}, {"left_s": 2.0}):
        cut = ends("cut", half, gives="x.json", **limits)
        assert (cut["status"], cut["exit_code"]) == ("cut", None)
        assert cut["result"] == {"summary": "fast"}  # what it had written counts


def test_what_a_piece_started_ends_with_it(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    child = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    one = piece(modules, "parent", code, limit_s=2.0)
    entry = modules["check"].run(one, 30.0, tmp_path, dict(os.environ))
    number = int(entry["output"])
    for _ in range(50):
        try:
            state = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_what_was_done_is_kept_for_its_commit_alone(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    good, bad = (piece(modules, name, "pass") for name in ("good", "bad"))
    state = modules["check"].State(path, "abc")
    assert not state.is_done(good)
    state.keep(good, {"status": "done"})
    state.keep(bad, {"status": "failed"})
    again = modules["check"].State(path, "abc")
    assert again.is_done(good)
    assert not again.is_done(bad)
    assert again.pieces == {"cells/good": {"status": "done"}, "cells/bad": {"status": "failed"}}
    assert not modules["check"].State(path, "def").is_done(good)
    path.write_text("{ half", encoding="utf-8")
    assert modules["check"].State(path, "abc").pieces == {}


def test_a_whole_call_is_gone_on_with(
    modules: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A machine with a GPU is made believe; the pieces are real processes, one fails at first."""
    counter = tmp_path / "counter"
    count = f"open({str(counter)!r}, 'a').write('x')"
    code = f"import os; {count}; raise SystemExit(os.path.getsize({str(counter)!r}) < 2)"
    pieces = [
        piece(modules, "good", f"{count}; print('fine')", least_s=1.0),
        piece(modules, "second", code, least_s=1.0),
        piece(modules, "long", "pass", least_s=1e6),
    ]
    check = modules["check"]
    monkeypatch.setattr(check, "look", lambda environment: FOUND)
    monkeypatch.setattr(check, "pieces", lambda folder, cell_s, peer_s: pieces)
    counter.write_text("")
    folders = ["--folder", str(tmp_path / "state"), "--results", str(tmp_path)]
    pieces[0], pieces[1] = pieces[1], pieces[0]
    assert check.main(folders) == 1
    said = capsys.readouterr().out
    assert "cells/second             failed after" in said
    assert "cells/good               done after" in said
    assert "cells/long               left: go on with --skip-done" in said
    pieces.pop()
    assert check.main([*folders, "--skip-done"]) == 0
    said = capsys.readouterr().out
    assert "cells/good               done before" in said
    assert "cells/second             done after" in said
    (path,) = tmp_path.glob("gpu-h100-*.json")
    whole = json.loads(path.read_text(encoding="utf-8"))
    ends = {label: entry["status"] for label, entry in whole["pieces"].items()}
    assert ends == {"cells/second": "done", "cells/good": "done"}
    assert whole["gpu"]["name"] == "NVIDIA H100 80GB HBM3"


def test_the_result_says_what_it_was_measured_on(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    summary = modules["summary"]
    monkeypatch.setenv(summary.COMMIT, "0123456789abcdef")
    monkeypatch.setenv("PATH", "")  # no git, no nvidia-smi
    header = summary.document(FOUND)
    assert (header["schema"], header["commit"]) == (1, "0123456789abcdef")
    assert header["driver"] == {}
    assert header["machine"]["packages"] == {"torch": "2.11.0"}
    assert header["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    path = summary.result_path(tmp_path, header)
    assert path.name == f"gpu-h100-{header['date']}-0123456789.json"
    monkeypatch.delenv(summary.COMMIT)
    assert summary.document(FOUND)["commit"] == "unknown"
    assert json.loads(json.dumps(header)) == header


def test_the_table_shows_times_shares_and_errors(modules: dict[str, ModuleType]) -> None:
    row = {"kernel": "swiglu", "shape": "8 x 4", "ceiling": "device_copy", "target": 0.85}
    timed = {"seconds": 1e-4, "share": 0.9, "other": "silu, mul", "other_seconds": 2e-4}
    entries = {
        "tests/kernels": {"status": "done", "seconds": 9.0, "output": "....\n5 passed in 3 s\n"},
        "ceilings/all": {
            "status": "done",
            "seconds": 9.0,
            "output": "",
            "result": {
                "ceilings": {
                    "device_copy": {"unit": "B/s", "median": 4.3e12},
                    "disk": {"error": "no space"},
                }
            },
        },
        "kernels/small": {
            "status": "failed",
            "seconds": 9.0,
            "output": "",
            "result": {"rows": [row | timed, row | {"error": "OutOfMemoryError: much"}]},
        },
        "cells/one": {"status": "cut", "seconds": 9.0, "output": "", "result": None},
    }
    text = "\n".join(modules["summary"].lines({"pieces": entries}))
    assert "5 passed in 3 s" in text
    assert "4,300.0 GB/s" in text
    assert "no space" in text
    assert "100.0 us  90.0 % of 85 % device_copy  silu, mul 200.0 us, 2.00x" in text
    assert "OutOfMemoryError: much" in text


def test_the_checkout_is_on_the_path_and_nothing_is_interpreted(
    modules: dict[str, ModuleType],
) -> None:
    given = {"PYTHONPATH": "/before", "TRITON_INTERPRET": "1", "HOME": "/root"}
    found = modules["pieces"].paths(given)
    assert found["HOME"] == "/root"
    assert "TRITON_INTERPRET" not in found
    places = found["PYTHONPATH"].split(":")
    assert places[0] == str(ROOT)
    assert places[-1] == "/before"
    wheels = str(ROOT / ".gpu-site")
    assert (wheels in places) == (sys.version_info[:2] == (3, 12))
