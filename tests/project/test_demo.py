"""examples/demo.py: its small parts here, the whole of it among the slow tests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_answers(path: Path, *texts: str) -> Path:
    bodies = [{"choices": [{"message": {"content": text}}]} for text in texts]
    lines = [json.dumps({"id": path.name, "response": {"body": body}}) for body in bodies]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_it_names_is_there(demo: ModuleType) -> None:
    from batchgen.policy.presets import PRESETS

    for path in (demo.TRACE, demo.PROMPTS, demo.MODEL / "model.safetensors"):
        assert (ROOT / path).is_file()
    assert set(demo.POLICIES) <= set(PRESETS)


def test_every_prompt_fits_the_pages_under_every_policy(demo: ModuleType) -> None:
    pages = []
    for line in (ROOT / demo.PROMPTS).read_text().splitlines():
        row = json.loads(line)
        text = sum(len(message["content"]) for message in row["messages"])
        pages.append((text + 100 + row["max_tokens"]) // demo.PAGE_TOKENS + 1)
    assert max(pages) <= demo.HBM_PAGES
    assert sum(pages) > demo.HBM_PAGES  # else the policies would not differ


def test_answers_are_compared_row_by_row(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_answers(tmp_path / "one", "=12", "=30")
    same = write_answers(tmp_path / "same", "=12", "=30")
    other = write_answers(tmp_path / "other", "=12", "=31")
    demo.compare_answers({"static": one, "vllm": same})
    assert capsys.readouterr().out == "All 2 answers are the same under static, vllm.\n"
    with pytest.raises(SystemExit, match="only 1 of 2"):
        demo.compare_answers({"static": one, "vllm": same, "batchgen": other})


def test_short_rows_keep_everything_but_the_budget(demo: ModuleType, tmp_path: Path) -> None:
    demo.write_short(tmp_path / "short.jsonl")
    written = [json.loads(line) for line in (tmp_path / "short.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in (ROOT / demo.PROMPTS).read_text().splitlines()]
    assert len(written) == demo.SHORT_ROWS
    for short, row in zip(written, given, strict=False):
        assert short == row | {"max_tokens": demo.SHORT_TOKENS}


def test_a_command_that_fails_ends_the_demo(
    demo: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as failure:
        demo.batchgen("sim", "--trace", "nothing.jsonl", quiet=True)
    assert failure.value.code == 2
    captured = capfd.readouterr()
    assert captured.out == "$ batchgen sim --trace nothing.jsonl\n"
    assert "nothing.jsonl" in captured.err
    assert demo.batchgen("sim", "--trace", "nothing.jsonl", allowed=(0, 2)) == 2


def test_a_folder_of_something_else_is_left_alone(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="another folder"):
        demo.main([str(tmp_path)])
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 200 answers are the same" in done.stdout
    assert done.stdout.count("equal, times included") == 3
    assert done.stdout.count("BCT measured") == 6  # two files, three policies
    assert (tmp_path / "demo" / "sim" / "plots" / "completion.png").is_file()
