"""Cases that once went wrong: an internal error, a hang, a line of pages, half a file."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
from pathlib import Path
from random import Random
from typing import Any

import pytest
from draw_disk import is_whole
from drawing import SIM
from hypothesis import given
from hypothesis import strategies as st
from places import Reset
from trying import Place, state_of

from batchgen.cli import main
from batchgen.cli.bench import MEASUREMENTS
from batchgen.errors import MOST_MESSAGE, MOST_REMEDY, UserError
from batchgen.model import load_model
from batchgen.oneline import MOST_WORD, brief

DIGITS = "9" * 5000
TRACE = ("sim", "--trace", "t.jsonl", *SIM)
MAKE = ("trace", "generate", "-o", "o.jsonl", "-n", "9")
EXEC = ("exec", "--model", "m", "-i", "in.jsonl", "-o", "o.jsonl", "--threads", "1")
# Command line, what its one line says.
LINES: dict[str, tuple[tuple[str, ...], str]] = {
    "a layout of 60,000 digits": ((*TRACE, "--layout", "tp1" + "0" * 60_000), "unknown part 'tp1"),
    "an unknown part of a layout": ((*TRACE, "--layout", "tp2+" + "x" * 9000), "unknown part"),
    "GPUs beyond all memory": ((*TRACE, "--gpus", str(2**63 - 1)), "give at most 1048576"),
    "a limit that C has no number for": (
        ("validate", "agreement", "--model", "m", "-i", "none.jsonl", "--limit", "9" * 20),
        "none.jsonl",
    ),
    "a temperature that is infinite": ((*EXEC, "--temperature", "1e309"), "--temperature is inf"),
    "a temperature below all": ((*EXEC, f"--temperature=-{DIGITS}"), "--temperature is -inf"),
    "a maximum that is infinite": (
        (*MAKE, "--part", f"1 / P50 9, P99 90, max {'9' * 400} / constant:9"),
        "is not a number",
    ),
    "a mean of 5,000 digits": (
        (*MAKE, "--part", f"1 / lognormal:mean={DIGITS},sigma=1 / constant:9"),
        "is not a number",
    ),
    "a part that is none": ((*MAKE, "--part", f"-{DIGITS} / constant:9"), "cannot read the part"),
    "a command of 5,000 digits": (("trace", DIGITS), "No such command"),
    "words too many": ((*TRACE, DIGITS, DIGITS), "unexpected extra argument"),
    "a measurement that is none": (("bench", "--only", "nothing"), "no measurement 'nothing'"),
    "a trace that never ends": (("trace", "stats", "/dev/full"), "but a device"),
    "a profile that never ends": ((*TRACE, "--profile", "/dev/urandom"), "but a device"),
    "a table that never ends": (("bench", "silicon", "--data", "/dev/zero"), "/dev/zero"),
}


@pytest.mark.parametrize("name", LINES)
def test_one_line(name: str, place: Place) -> None:
    argv, said = LINES[name]
    ended = place.check(*argv)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1


HUGE = 10**30
CONFIGS: dict[str, Any] = {
    "rope_scaling": (5, "x", [], {"factor": "x"}, {"original_max_position_embeddings": []}),
    "quantization_config": ("x", 5, [1], {"quant_method": ["fp8"]}, {"quant_method": "x" * 5000}),
    "mlp_only_layers": (5, "x", [None], [HUGE], {"a": 1}),
    "num_hidden_layers": (HUGE, 2**31, 0, -1, "x" * 5000, [0] * 2000),
    "num_experts": (HUGE, 2**31, -1, 1.5),
    "max_position_embeddings": (0, HUGE, 1e308, None),
    "torch_dtype": (["x" * 5000], 5, {"a": 1}, "x" * 5000),
    "model_type": ([5, "x" * 5000], 5, None, "x" * 5000, {}),
    "layer_types": (5, "x", {"a": 1}),
    "sliding_window": (HUGE, "x", -1),
    "head_dim": (HUGE, 2**31, "x"),
    "tie_word_embeddings": ("x", 5, []),
}


def test_configs_in_the_simulator_name_file_and_field(place: Place) -> None:
    """As the executor does: both have one reader."""
    path = place.folder / "m" / "config.json"
    right = json.loads(path.read_text()) | {"num_experts_per_tok": 1, "num_experts": 4}
    right |= {"moe_intermediate_size": 8, "model_type": "qwen3_moe", "use_sliding_window": True}
    right |= {"sliding_window": 64}
    for field, values in CONFIGS.items():
        for value in values:
            path.write_text(json.dumps(right | {field: value}))
            with pytest.raises(UserError) as caught:
                load_model(place.folder / "m")
            assert "m/config.json" in str(caught.value)
            assert field in str(caught.value), (field, value)
            assert len(str(caught.value)) < 700
    path.write_text(json.dumps(right | {"rope_scaling": 5}))
    for argv in (("model", "show", "m"), ("sim", "--trace", "t.jsonl", "--model", "m")):
        assert "m/config.json: field 'rope_scaling'" in place.check(*argv).err
    path.write_text(json.dumps(right)[:-1] + f', "vocab_size": {DIGITS}}}')
    assert "is not valid JSON" in place.check("model", "show", "m").err


def test_a_refused_sweep_leaves_no_folder(place: Place) -> None:
    text = (place.folder / "s.yaml").read_text().replace("kind: slow", "kind: slwo")
    (place.folder / "s.yaml").write_text(text)
    ended = place.check("sweep", "s.yaml", "--out", "swept")
    assert (ended.code, "s.yaml" in ended.err, "slwo" in ended.err) == (2, True, True)


def test_a_sweep_runs_again_what_was_damaged(place: Place) -> None:
    text = (place.folder / "s.yaml").read_text()
    (place.folder / "s.yaml").write_text(text.replace("[2, 4]", "[2]").replace("vllm, ", ""))
    argv = ("sweep", "s.yaml", "--out", "swept", "--workers", "1")
    assert place.run(*argv).code == 0
    swept = place.folder / "swept"
    before = {path.name: path.read_bytes() for path in swept.iterdir() if path.is_file()}
    books = swept / "runs.jsonl"
    lines = books.read_text().splitlines()
    entry = json.loads(lines[1])
    entry["result"]["summary"]["bct_s"] = [5]
    books.write_text("\n".join([lines[0], json.dumps(entry), *lines[2:]]) + "\n")
    (device,) = (swept / "devices").iterdir()
    device.write_bytes(b"\xff\xab\n")
    ended = place.check(*argv, outputs=("swept",))
    assert ended.code == 0
    assert "1 of 4 runs are done already" in ended.err
    assert {path.name: path.read_bytes() for path in swept.iterdir() if path.is_file()} == before


def test_a_log_that_stops_early_is_not_equal(place: Place) -> None:
    for run in ("run/batchgen", "ran"):
        assert place.check("validate", "replay", run, "--no-fresh").code == 0
        path = place.folder / run / "decisions.jsonl.gz"
        lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        path.write_bytes(gzip.compress(b"".join(lines[: len(lines) // 2])))
        ended = place.check("validate", "replay", run, "--no-fresh")
        assert ended.code == 1
        assert "not whole: decisions.jsonl.gz stops early, with" in ended.err
        assert ended.out.startswith("equal so far: ")
        ended = place.check("validate", "replay", run, "--no-fresh", "--json")
        told = json.loads(ended.out)
        assert (ended.code, told["equal"], told["stops_early"]) == (1, False, True)


def test_a_mistake_with_debug_is_still_one(place: Place) -> None:
    ended = place.check("sim", "--trace", "none.jsonl", "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: trace none.jsonl does not exist")
    ended = place.check("sim", "--trace", "none.jsonl", "--debgu")
    assert "No such option: --debgu" in ended.err


def test_a_look_at_an_input_of_nothing_says_so(place: Place) -> None:
    (place.folder / "in.jsonl").write_text("{}\n")
    for argv in ((*EXEC[:5], "--dry-run"), ("validate", "input", "in.jsonl")):
        ended = place.check(*argv)
        assert ended.code == 2
        assert ended.err.splitlines()[-1].startswith("error: no row of in.jsonl can run")


def test_a_timeline_replaces_nothing_unasked(place: Place) -> None:
    argv = ("report", "run/batchgen", "--timeline")
    for path, said in (("keep/thesis.txt", "exists; give --force"), ("keep", "is a folder")):
        ended = place.check(*argv, path)
        assert (ended.code, said in ended.err) == (2, True)
    assert place.check(*argv, "old.jsonl", "--force", outputs=("old.jsonl",)).code == 0


def test_a_run_directory_that_makes_no_sense(place: Place) -> None:
    path = place.folder / "run" / "batchgen" / "run.json"
    run = json.loads(path.read_text())
    for field, value in (("engines", 5), ("marks", 0.5), ("num_gpus", []), ("config", "x")):
        path.write_text(json.dumps(run | {field: value}))
        for more in ((), ("--json",), ("--timeline", "o.json", "--force")):
            place.check("report", "run", *more, outputs=("o.json",))


@pytest.mark.parametrize("name", ["status.json", "journal.sqlite", "owner.json", "job.json"])
def test_books_of_a_job_that_are_no_files(name: str, place: Place) -> None:
    """A pipe would be waited for."""
    (place.folder / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 2}\n{}\n')
    assert place.run(*EXEC, "--max-errors", "0").code == 3
    books = place.folder / "o.jsonl.job"
    (books / name).unlink(missing_ok=True)
    os.mkfifo(books / name)
    for argv in ((*EXEC, "--resume", "always"), ("job", "status", "o.jsonl.job")):
        ended = place.check(*argv)
        assert ended.code == 2
        assert "but a pipe" in ended.err or "job.json" in ended.err


def test_a_table_of_a_run_that_is_a_pipe(place: Place) -> None:
    path = place.folder / "run" / "batchgen" / "rows.parquet"
    path.unlink()
    os.mkfifo(path)
    assert "but a pipe" in place.check("report", "run").err


PRINTING = (
    ("model", "list", "--json"),
    ("policy", "list"),
    ("trace", "stats", "t.jsonl"),
    ("report", "run"),
    ("--help",),
)


def test_standard_output_that_is_full(place: Place) -> None:
    """Said in one line, whether it is met on the way or at the end."""
    for argv in PRINTING:
        ended = place.check(*argv, out="/dev/full")
        assert ended.code == 2, argv
        assert ended.err == "error: No space left on device; choose another path or free it\n"


def test_talk_that_cannot_be_heard_stops_no_work(place: Place) -> None:
    argv = ("sweep", "s.yaml", "--out", "swept", "--workers", "1")
    assert place.check(*argv, outputs=("swept",), err="/dev/full").code == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_locales_without_the_characters_of_a_name(encoding: str, place: Place) -> None:
    name = "n\u00e4me\U0001f600.jsonl"
    (place.folder / name).write_bytes((place.folder / "t.jsonl").read_bytes())
    ended = place.check("trace", "stats", name, encoding=encoding)
    assert ended.code == 0
    # typer takes a stream of ASCII for a mistake, and writes UTF-8.
    assert ended.out.split(":")[0].endswith(("me\\U0001f600", "me\U0001f600"))
    ended = place.check("trace", "stats", f"no{name}", encoding=encoding)
    assert (ended.code, "no such file" in ended.err) == (2, True)
    row = {"custom_id": "\u00e4\u4e2d\U0001f600", "prompt": "h\u00e4llo", "max_tokens": 2}
    (place.folder / "in.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    for output in ("o.jsonl", "-"):
        argv = ("exec", "--model", "m", "-i", "in.jsonl", "-o", output, "--threads", "1")
        assert place.check(*argv, outputs=("o.jsonl",), encoding=encoding).code == 0
    ended = place.check("job", "results", "o.jsonl", encoding=encoding)
    assert json.loads(ended.out)["custom_id"] == row["custom_id"]


WRITING: dict[str, tuple[str, ...]] = {
    "init": ("model", "init", "o.dir"),
    "figures": ("report", "run", "--plots", "o.dir"),
    "timeline": ("report", "run/batchgen", "--timeline", "o.json"),
    "bench": (
        "bench",
        "bound",
        "--model",
        "llama-3.1-8b",
        "--seats",
        "4",
        "--tflops",
        "1",
        "--gb-per-s",
        "9",
        "--prompt-tokens",
        "5",
        "--output-tokens",
        "5",
        "--out",
        "o.json",
    ),
    "trace": (*MAKE, "--part", "1 / constant:9 / constant:3"),
}


@pytest.mark.parametrize("name", WRITING)
def test_a_disk_that_fills_leaves_nothing_half(name: str, place: Place) -> None:
    argv = WRITING[name]
    outputs = ("o.dir", "o.json", "o.jsonl")
    for size in (0, 3000) if name != "figures" else (3000,):
        ended = place.check(*argv, outputs=outputs, is_partial=True, fsize=size)
        assert ended.code == 2 or size > 0
        for output in outputs:
            for path in (place.folder / output, *(place.folder / output).rglob("*")):
                assert not path.is_file() or is_whole(path), (size, path)


def test_a_job_whose_disk_fills_goes_on_to_the_same_bytes(place: Place) -> None:
    rows = [{"prompt": "a" * n, "max_tokens": 5, "ignore_eos": True} for n in range(1, 30)]
    (place.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = {"SOURCE_DATE_EPOCH": "1700000000"}
    assert place.run(*EXEC, "--exact", env=env).code == 0
    output = place.folder / "o.jsonl"
    right = output.read_bytes()
    codes = set()
    for size in (0, 34_000, 40_000, 120_000):
        output.unlink(missing_ok=True)
        ended = place.check(
            *EXEC, "--exact", outputs=("o.jsonl",), is_partial=True, fsize=size, env=env
        )
        codes.add(ended.code)
        if ended.code:
            assert not output.exists()
            again = (*EXEC, "--exact", "--resume", "if-possible")
            assert place.check(*again, outputs=("o.jsonl",), env=env).code == 0
        assert output.read_bytes() == right
        assert not output.with_name("o.jsonl.job").exists()
    assert {0, 2} <= codes


REPLACING: dict[str, tuple[str, ...]] = {
    "trace": (*MAKE, "--part", "1 / constant:9 / constant:3", "--force"),
    "devices": ("trace", "devices", "generate", "--gpus", "16", "-o", "o.jsonl", "--force"),
    "exec": (*EXEC, "--force"),
    "bench": (*WRITING["bench"][:-1], "o.jsonl", "--force"),
}


@pytest.mark.parametrize("name", REPLACING)
def test_rights_of_a_file_that_is_replaced_stay(name: str, place: Place) -> None:
    path = place.folder / "o.jsonl"
    path.write_text("old\n")
    path.chmod(0o640)
    assert place.check(*REPLACING[name], outputs=("o.jsonl",)).code == 0
    assert path.read_text() != "old\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.unlink()
    argv = tuple(word for word in REPLACING[name] if word != "--force")
    assert place.check(*argv, outputs=("o.jsonl",), umask=0o027).code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_rights_of_a_run_directory_that_is_replaced_stay(place: Place) -> None:
    folder = place.folder / "run" / "batchgen"
    folder.chmod(0o700)
    assert place.run(*TRACE, "--out", "run", "--force").code == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_figures_without_a_home_say_nothing_of_it(place: Place) -> None:
    ended = place.check(
        "report", "run", "--plots", "o.dir", outputs=("o.dir",), env={"HOME": "/none"}
    )
    assert ended.code == 0
    assert all(line.startswith("wrote ") for line in ended.err.splitlines())


def test_no_file_names_a_folder_of_the_machine(reset: Reset) -> None:
    """Whoever gives relative paths may pass the results on."""
    place = reset.fresh()
    assert place.check(*EXEC, "--manifest", "o.json", outputs=("o.jsonl", "o.json")).code == 0
    for path in place.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert str(reset.folder).encode() not in data, path


def test_the_search_sees_what_it_looks_for(reset: Reset) -> None:
    """A test of the tests: harm, a traceback and a file that is left are found."""
    from trying import Ended, faults_of

    place = reset.fresh()
    before = state_of(place.folder)

    def faults(code: int, err: str, change: Path | None = None) -> list[str]:
        after = dict(before)
        if change is not None:
            after[str(change)] = ("0o100644", "other")
        return faults_of(Ended(argv=[], code=code, late=False, out="", err=err), before, after)

    assert faults(0, "") == faults(2, "error: x; y\n") == []
    assert faults(4, "internal error, a bug\n")
    assert faults(2, "Traceback\nerror: x\n")
    assert faults(2, "error: " + "x" * 700)
    assert faults(2, "") == ["no line that says why"]
    assert faults(0, "", Path("keep/thesis.txt")) == ["changed keep/thesis.txt"]
    assert faults(0, "", Path(".x.tmp")) == ["left .x.tmp"]
    assert Random("usage 0").random() == Random("usage 0").random()


@given(st.text(max_size=900), st.integers(10, 400))
def test_brief_texts_have_both_ends(text: str, most: int) -> None:
    cut = brief(text, most)
    assert len(cut) <= most
    assert cut == text or "..." in cut
    assert all(len(word) <= MOST_WORD for word in cut.split(" "))
    assert brief(f"a {text} b", most)[0] == "a"
    assert brief(f"a {text} b", most)[-1] == "b"


def test_what_errors_quote_is_cut() -> None:
    error = UserError(f"'{DIGITS}' is no number", remedy="choose one of " + "x, " * 900)
    assert len(str(error)) <= MOST_MESSAGE + MOST_REMEDY + 2
    assert str(error).startswith("'999")
    assert "9' is no number; choose one of x, " in str(error)


def test_an_interrupted_init_puts_the_old_model_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    assert main(["model", "init", str(folder)]) == 0
    before = state_of(tmp_path)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if Path(target) == folder:
            monkeypatch.setattr(Path, "rename", rename)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    assert main(["model", "init", str(folder), "--force", "--seed", "1"]) == 3
    assert state_of(tmp_path) == before
    assert main(["model", "init", str(folder), "--force", "--seed", "1"]) == 0
    assert state_of(tmp_path) != before


def test_bench_knows_its_measurements() -> None:
    """Its words are checked before the benchmarks start, which would tell them in pages."""
    script = Path(__file__).parents[2] / "benchmarks" / "run.py"
    if not script.is_file():
        pytest.skip("not a checkout")
    found = re.findall(r'^    "(\w+)": Bench\.', script.read_text(), re.MULTILINE)
    assert tuple(found) == MEASUREMENTS
