"""The file of a sweep: what it says, and one line for everything that is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.simjob import SimJob
from batchgen.sweep.read import read_sweep
from batchgen.sweep.troubles import device_file, device_lines

GOOD = """\
trace: trace.jsonl
model: llama-3.1-8b
gpu: h100
gpus: [4, 8]
layouts: [rule, tp2]
policies: [vllm, batchgen]
devices:
  healthy: null
  slow:
    - {at_s: 1, kind: slow, gpu: a, factor: 2}
    - {at_s: 2, kind: lost, gpu: b}
    - {at_s: 3, kind: back, gpu: b}
options:
  plain: {}
  other: {plan.host: false, plan.token_budget: 4096}
seeds: 3
"""


def write(folder: Path, text: str) -> str:
    (folder / "trace.jsonl").write_text('{"prompt_tokens": 9, "output_tokens": 9}\n')
    path = folder / "s.yaml"
    path.write_text(text)
    return str(path)


def test_a_file_becomes_runs(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, GOOD))
    runs = list(sweep.runs())
    assert (sweep.name, sweep.num_runs, len(runs)) == ("s", 2 * 2 * 2 * 2 * 2 * 3, 96)
    assert [run.number for run in runs] == list(range(96))
    assert [run.seed for run in runs[:4]] == [0, 1, 2, 0]
    assert (
        len({(r.policy, r.layout, r.gpus, r.devices.name, r.options.name, r.seed) for r in runs})
        == 96
    )
    last = runs[-1]
    assert last.job(sweep, "f.jsonl") == SimJob(
        trace=str(tmp_path / "trace.jsonl"),
        model="llama-3.1-8b",
        gpu="h100",
        gpus=8,
        layout="tp2",
        policy="batchgen",
        overrides=(("plan.host", "false"), ("plan.token_budget", "4096")),
        faults="f.jsonl",
        seed=2,
    )
    assert runs[0].job(sweep, None).layout is None


def test_words_are_gpus_drawn_by_the_seed(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, GOOD))
    slow = [run for run in sweep.runs() if run.devices.name == "slow" and run.gpus == 8]
    by_seed = {run.seed: device_lines(run) for run in slow}
    assert len(set(by_seed.values())) > 1
    for run in slow:
        assert device_lines(run) == by_seed[run.seed]
        path = device_file(run, tmp_path / "devices")
        assert path is not None
        from batchgen.sim.faults import load_faults

        first, lost, back = load_faults(path, run.gpus)
        assert lost.gpu == back.gpu != first.gpu
    assert device_file(next(sweep.runs()), tmp_path) is None


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    """Every file that it names is there, from `examples/sweeps`."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "sweeps.md").read_text(encoding="utf-8")
    text = page.split("```yaml\n")[1].split("```")[0]
    assert "../../" in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("../../", f"{root}/"), encoding="utf-8")
    sweep = read_sweep(str(path))
    assert sweep.num_runs == 2 * 2 * 2 * 2 * 3 * 5


def test_a_file_per_seed(tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / f"d-{seed}.jsonl").write_text("")
    text = GOOD.replace("  healthy: null\n", "  drawn: d-{seed}.jsonl\n")
    runs = list(read_sweep(write(tmp_path, text)).runs())
    assert device_file(runs[2], tmp_path) == str(tmp_path / "d-2.jsonl")
    (tmp_path / "d-1.jsonl").unlink()
    with pytest.raises(UserError, match=r"s.yaml:8: field 'devices.drawn': .*d-1.jsonl does not"):
        read_sweep(str(tmp_path / "s.yaml"))


def swapped(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "s.yaml:1: is empty; give trace"),
        ("- 1\n", "s.yaml:1: is no mapping"),
        ("trace: [\n", "s.yaml:2: is not valid YAML"),
        ("a: &x 1\nb: *x\n", "s.yaml:1: anchor 'x'; write the value out"),
        ("trace: !!python/name:os.system\n", "s.yaml:1: field 'trace': has the tag"),
        ("1: 2\n", "s.yaml:1: has a key that is no text; put it in quotes"),
        ("trace: a\ntrace: b\n", "s.yaml:2: field 'trace': stands twice"),
        ("[" * 3000, "s.yaml"),
        ("a: " + "{a: " * 20 + "1" + "}" * 20, "is nested too deep"),
        ("trace: 0x" + "9" * 9 + "_:\n", "s.yaml:1"),
        ("trace: 2001-99-99\n", "s.yaml:1: field 'trace'"),
        (swapped("policies", "polices"), "s.yaml:6: field 'polices': no such field; did you mean"),
        (swapped("gpus: [4, 8]\n", ""), "s.yaml:1: field 'gpus': missing"),
        (swapped("gpus: [4, 8]", "gpus: [4, 0]"), "s.yaml:4: field 'gpus.1': 0; give a whole"),
        (swapped("gpus: [4, 8]", "gpus: many"), "s.yaml:4: field 'gpus': 'many'"),
        (swapped("gpus: [4, 8]", "gpus: [4, 4]"), "s.yaml:4: field 'gpus.1': names 4 twice"),
        (swapped("gpus: [4, 8]", "gpus: []"), "s.yaml:4: field 'gpus': is empty"),
        (swapped("gpu: h100", "gpu: h9"), "s.yaml:3: field 'gpu': unknown GPU 'h9'"),
        (swapped("gpu: h100", "gpu: h100\ncluster: x"), "s.yaml:4: field 'cluster': beside 'gpu'"),
        (swapped("llama-3.1-8b", "llama-9"), "s.yaml:2: field 'model': unknown model"),
        (swapped("llama-3.1-8b", "7"), "s.yaml:2: field 'model': is no text"),
        (swapped("trace.jsonl", "none.jsonl"), "s.yaml:1: field 'trace': "),
        (swapped("[vllm, batchgen]", "[vllm, nope]"), "s.yaml:6: field 'policies.1': unknown"),
        (swapped("[rule, tp2]", "[rule, tp3]"), "s.yaml:5: field 'layouts.1'"),
        (swapped("seeds: 3", "seeds: -1"), "s.yaml:16: field 'seeds': -1"),
        (swapped("seeds: 3", "seeds: .nan"), "s.yaml:16: field 'seeds': nan"),
        (swapped("seeds: 3", "seeds: 99999"), "s.yaml:1: 3,199,968 runs; at most 100,000"),
        (swapped("seeds: 3", "rows: 0"), "s.yaml:16: field 'rows': 0"),
        (swapped("seeds: 3", "oracle: 1"), "s.yaml:16: field 'oracle': is no truth value"),
        (swapped("seeds: 3", "costs: free"), "s.yaml:16: field 'costs': 'free'; choose one of"),
        (swapped("factor: 2", "factor: x"), "s.yaml:10: field 'devices.slow.0.factor': 'x'"),
        (swapped("factor: 2", "speed: 2"), "s.yaml:10: field 'devices.slow.0.speed': no such"),
        (swapped("kind: lost, ", ""), "s.yaml:11: field 'devices.slow.1.kind': missing"),
        (swapped("healthy: null", "healthy: 7"), "s.yaml:8: field 'devices.healthy': is no"),
        (swapped("healthy: null", "healthy: no.jsonl"), "s.yaml:8: field 'devices.healthy': "),
        (swapped("healthy: null", "../x: null"), "s.yaml:8: field 'devices.../x': '../x' cannot"),
        (swapped("plain: {}", "plain: 3"), "s.yaml:14: field 'options.plain': is no mapping"),
        (swapped("plain: {}", "plain: {host: 1}"), "s.yaml:14: field 'options.plain.host': is not"),
        (swapped("plan.host: false", "plan.hots: 1"), "s.yaml:15: field 'options.other.plan.hots'"),
        (swapped("plan.host: false", "plan.host: [1]"), "is no plain value"),
        (swapped("gpu: a", "gpu: 4"), "s.yaml:10: field 'devices.slow.gpu': GPU 4 is not in this"),
        (
            swapped("kind: lost", "kind: melted"),
            "s.yaml:11: field 'devices.slow.kind': 'melted' is no kind of trouble",
        ),
        ('name: "a\\eb"\n' + GOOD, "s.yaml:1: field 'name': has characters that cannot"),
    ],
)
def test_hostile_files_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = write(tmp_path, text)
    assert main(["sweep", path, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err


def test_bytes_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    assert main(["sweep", str(path)]) == 2
    assert "s.yaml:2: is not UTF-8" in capsys.readouterr().err
    path.write_bytes(b"#" * (2 << 20))
    assert main(["sweep", str(path)]) == 2
    assert "bytes; split the sweep" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path)]) == 2
    assert "is a folder; give a .yaml file" in capsys.readouterr().err


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    start=st.integers(0, len(GOOD)),
    length=st.integers(0, 30),
    new=st.text(st.sampled_from("ab1:-[]{}&*!|>'\"%@`#,. \n\t\x00\x1b~?"), max_size=12),
)
def test_any_change_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, new: str
) -> None:
    path = write(tmp_path_factory.mktemp("any"), GOOD[:start] + new + GOOD[start + length :])
    told = "s.yaml"
    try:
        read_sweep(path)
    except UserError as error:
        told = str(error)
    assert "s.yaml" in told
    assert "\n" not in told
