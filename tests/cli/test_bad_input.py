"""Bad input: one clear line that names the thing and the remedy, exit code 2, nothing written."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batchgen.cli import main

Files = dict[Path, bytes]
ROW = {"prompt_tokens": 100, "output_tokens": 20}


def snapshot(folder: Path) -> Files:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad_input") / "tiny"
    assert main(["model", "init", str(folder)]) == 0
    return folder


@pytest.fixture
def here(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Path:
    """A folder with good and bad files, as the current one."""
    capsys.readouterr()  # what `model init` said
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "tiny")
    (tmp_path / "t.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello", "max_tokens": 3}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "prose.jsonl").write_text("It was a dark and stormy night.\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(
        gzip.compress((json.dumps(ROW) + "\n").encode() * 999)[:40]
    )
    negative = {**ROW, "prompt_tokens": -5}
    (tmp_path / "negative.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(negative) + "\n")
    long = {**ROW, "prompt_tokens": 300_000}
    (tmp_path / "long.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(long) + "\n")
    (tmp_path / "old.jsonl").write_text("do not lose me\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work\n")
    return tmp_path


def refused(here: Path, capsys: pytest.CaptureFixture[str], args: list[str], *words: str) -> None:
    before = snapshot(here)
    assert main(args) == 2, args
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err
    assert snapshot(here) == before


SIM: list[tuple[list[str], tuple[str, ...]]] = [
    (["--trace", "none.jsonl"], ("trace none.jsonl does not exist",)),
    (["--trace", "full"], ("trace full is a folder",)),
    (["--trace", "empty.jsonl"], ("empty.jsonl",)),
    (["--trace", "blank.jsonl"], ("blank.jsonl",)),
    (["--trace", "binary.jsonl"], ("binary.jsonl:1",)),
    (["--trace", "prose.jsonl"], ("prose.jsonl:1",)),
    (["--trace", "cut.jsonl.gz"], ("cut.jsonl.gz",)),
    (["--trace", "negative.jsonl"], ("negative.jsonl:2", "prompt_tokens")),
    (["--trace", "long.jsonl"], ("long.jsonl", "row 1 has 300000 prompt tokens", "drop those")),
    (["--model", "deepseek-r2"], ("deepseek-r2", "deepseek-r1")),
    (["--model", "full"], ("full",)),
    (["--gpu", "h2000"], ("h2000",)),
    (["--policy", "vlm"], ("unknown policy 'vlm'", "did you mean vllm")),
    (["--compare", "vllm,nothing"], ("unknown policy 'nothing'",)),
    (["--set", "order.part=alphabet"], ("unknown order part 'alphabet'", "arrival")),
    (["--set", "order.speed=4"], ("--set order.speed", "no such option")),
    (["--set", "magic.part=x"], ("no such part", "admission")),
    (["--set", "plan.magic=4"], ("--set plan.magic", "token_budget")),
    (["--set", "plan.token_budget=many"], ("plan.token_budget=many",)),
    (["--set", "plan.token_budget=0"], ("plan.token_budget=0", "from 1 to 16777216")),
    (["--policy", "vllm", "--set", "admission.watermark=x"], ("admission.watermark=x",)),
    (["--gpus", "1", "--gpu", "rtx-4090"], ("deepseek-r1",)),
    (["--gpus", "2", "--layout", "tp3"], ("tp3",)),
    (["--gpus", "2", "--layout", "sideways"], ("sideways",)),
    (["--out", "old.jsonl"], ("old.jsonl is a file",)),
    (["--max-output-tokens", "0"], ("--max-output-tokens is 0",)),
    (["--limit", "0"], ("--limit is 0",)),
    (["--profile", "prose.jsonl"], ("prose.jsonl",)),
    (["--faults", "prose.jsonl"], ("prose.jsonl:1",)),
    (["--log", "full"], ("--log full has nowhere to go", "--out")),
    (["--nonsense"], ("--nonsense",)),
]


@pytest.mark.parametrize(("extra", "words"), SIM, ids=lambda value: " ".join(value)[:40])
def test_sim(
    extra: list[str], words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = [] if "--trace" in extra else ["--trace", "t.jsonl"]
    refused(here, capsys, ["sim", *trace, *extra], *words)


def test_sim_writes_into_no_folder_that_is_not_empty(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "full" / "vllm").mkdir()
    (here / "full" / "vllm" / "notes").write_text("mine")
    args = ["sim", "--trace", "t.jsonl", "--policy", "vllm", "--out", "full"]
    refused(here, capsys, args, "exists and is not empty")
    refused(here, capsys, [*args, "--force"], "is not a run directory")


EXEC: list[tuple[list[str], tuple[str, ...]]] = [
    (["-i", "none.jsonl"], ("none.jsonl does not exist",)),
    (["-i", "full"], ("full",)),
    (["-i", "empty.jsonl"], ("empty.jsonl holds no rows",)),
    (["-i", "blank.jsonl"], ("blank.jsonl holds no rows",)),
    (["-i", "cut.jsonl.gz"], ("cut.jsonl.gz is damaged", "make it again")),
    (["--model", "none"], ("model none is not a folder", "batchgen model init")),
    (["--model", "full"], ("full", "config.json")),
    (["--model", "llama-3.1-8b"], ("is not a folder",)),
    (["--policy", "vlm"], ("unknown policy 'vlm'", "did you mean vllm")),
    (["--set", "order.part=alphabet"], ("unknown order part 'alphabet'",)),
    (["--set", "order.speed=4"], ("--set order.speed", "no such option")),
    (["--set", "plan.magic=4"], ("--set plan.magic",)),
    (["--set", "plan.depth=3"], ("plan.depth",)),
    (["--set", "plan.memory_fraction=0.5"], ("--hbm-pages",)),
    (["--set", "tail.part=partition", "--policy", "vllm"], ("needs switch", "--set tail.part=")),
    (["--dtype", "int3"], ("int3", "float32")),
    (["--hbm-pages", "1"], ("1 hbm and",)),
    (["--host-pages", "-1"], ("-1 host pages",)),
    (["--hbm-pages", "1000000000000"], ("do not fit", "lower --hbm-pages")),
    (["--max-tokens", "0"], ("--max-tokens is 0",)),
    (["--limit", "0"], ("--limit is 0",)),
    (["--threads", "0"], ("--threads is 0",)),
    (["--log", "full"], ("--log full has nowhere to go",)),
    (["--log", "loud", "--out", "x"], ("--log is 'loud'",)),
    (["-o", "old.jsonl"], ("old.jsonl exists", "--force")),
    (["-o", "full"], ("full is a folder",)),
    (["-o", "in.jsonl", "--force"], ("in.jsonl is the input",)),
    (["-o", "nowhere/out.jsonl"], ("nowhere",)),
    (["--out", "full"], ("full exists and is not empty",)),
    (["--out", "full", "--force"], ("is not a run directory",)),
]


def exec_args(extra: list[str]) -> list[str]:
    args = ["exec", "--threads", "1", *extra]
    for flag, value in (("--model", "tiny"), ("-i", "in.jsonl"), ("-o", "out.jsonl")):
        if flag not in extra:
            args += [flag, value]
    return args


@pytest.mark.parametrize(("extra", "words"), EXEC, ids=lambda value: " ".join(value)[:40])
def test_exec(
    extra: list[str], words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(here, capsys, exec_args(extra), *words)


def edit_config(**changes: Any) -> None:
    path = Path("tiny/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_exec_on_damaged_checkpoints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("tiny/model.safetensors")
    whole = weights.read_bytes()
    for damaged in (whole[:-100], b"", b"junk" * 100, (1 << 62).to_bytes(8, "little") + whole[8:]):
        weights.write_bytes(damaged)
        refused(here, capsys, exec_args([]), "model.safetensors")
    weights.unlink()
    refused(here, capsys, exec_args([]), "has no model.safetensors")
    weights.write_bytes(whole)
    config = Path("tiny/config.json").read_text()
    edit_config(num_hidden_layers=3)
    refused(here, capsys, exec_args([]), "tensors are missing", "config.json")
    edit_config(num_hidden_layers=2, hidden_size=128)
    refused(here, capsys, exec_args([]), "shape")
    edit_config(hidden_size=64, model_type="mamba", architectures=["Mamba"])
    refused(here, capsys, exec_args([]), "amba")
    Path("tiny/config.json").write_text("{")
    refused(here, capsys, exec_args([]), "config.json")
    Path("tiny/config.json").write_text(config)
    Path("tiny/tokenizer.json").write_text("{}")
    refused(here, capsys, exec_args([]), "tokenizer.json")
    Path("tiny/tokenizer.json").unlink()
    refused(here, capsys, exec_args([]), "has no tokenizer.json")


def test_exec_on_a_model_that_memory_cannot_hold(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_config(hidden_size=1 << 15, intermediate_size=1 << 17, num_hidden_layers=200)
    refused(here, capsys, exec_args([]), "model tiny needs", "GB of memory are free", "smaller")


def test_a_prompt_longer_than_the_context_is_an_error_row_among_others(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, short = (json.dumps({"prompt": "x" * n, "max_tokens": 3}) + "\n" for n in (5000, 5))
    (here / "in.jsonl").write_text(long + short)
    assert main(exec_args([])) == 1
    assert "Traceback" not in capsys.readouterr().err
    bad, good = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert bad["error"]["code"] == "context_length_exceeded"
    assert "line 1: the prompt has 5000 tokens" in bad["error"]["message"]
    assert (bad["error"]["prompt_tokens"], bad["error"]["max_tokens"]) == (5000, 3)
    assert f"a context of {bad['error']['limit']}" in bad["error"]["message"]
    assert good["error"] is None


def test_a_job_without_any_row_that_can_run_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "in.jsonl").write_text(json.dumps({"prompt": "x" * 5000}) + "\n{}\n")
    refused(
        here,
        capsys,
        exec_args([]),
        "no row of in.jsonl can run; line 1: the prompt has 5000 tokens",
        "mend the rows",
    )


def test_a_real_process_shows_no_traceback(here: Path) -> None:
    for args in (["sim", "--trace", "prose.jsonl"], exec_args(["--model", "full"])):
        command = [sys.executable, "-m", "batchgen.cli", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
