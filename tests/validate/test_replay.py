"""Replay (a): a log comes again in a fresh process; any alteration is named by its event."""

from __future__ import annotations

import gzip
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchgen.cli import main
from batchgen.errors import ReplayMismatch, UserError
from batchgen.exec.clock import WallClock
from batchgen.exec.drive import drive
from batchgen.exec.init import ARCHITECTURES
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.log import Entry, Header, read_log
from batchgen.logbook import DecisionLog
from batchgen.replay import replay
from batchgen.report.rundir import write_run
from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

PRESETS = ("static", "orca", "vllm", "batchgen")
FAMILIES = tuple(ARCHITECTURES)
ROOT = Path(__file__).parents[2]


def executed(model: Path, prompts: Path, policy: str, **options: Any) -> list[str]:
    """The log of a real run (wall clock) on scarce memory."""
    sizes = (("plan.page_tokens", "8"), ("plan.boundary", "16"), *options.pop("overrides", ()))
    options = {"hbm_pages": 48, "host_pages": 200, "threads": 1, "log": "full", **options}
    job = ExecJob(
        model=model,
        input=prompts,
        output=Path("unused"),
        policy=policy,
        overrides=sizes,
        **options,
    )
    prepared = prepare(job)
    log = prepared.log()
    drive(prepared, WallClock(), log=log)
    return list(log.lines())


@pytest.fixture(scope="module")
def log(tiny_models: dict[str, Path], prompts: Path) -> list[str]:
    return executed(tiny_models["qwen3"], prompts, "batchgen")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all scalars, and of all lists that hold none."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for key, item in enumerate(value) for leaf in leaves(item, (*path, key))]
    return [path]


def alter(entry: Any, path: tuple[Any, ...]) -> None:
    """Change one leaf into another value of its kind."""
    for key in path[:-1]:
        entry = entry[key]
    old = entry[path[-1]]
    if isinstance(old, bool):
        entry[path[-1]] = not old
    elif isinstance(old, int):
        entry[path[-1]] = old + 1
    elif isinstance(old, str):
        entry[path[-1]] = old + "x"
    else:
        entry[path[-1]] = [0]


def comes_again(lines: list[str], policy: str) -> None:
    """The log, and the first half of it."""
    report = replay(lines)
    assert report.unfinished_rows == 0
    assert replay(lines[: len(lines) // 2]).unfinished_rows > 0
    assert (report.backend, report.preset, report.events) == ("exec", policy, len(lines) - 1)
    assert report.actions > len(lines) // 2


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("policy", PRESETS)
def test_every_preset_replays_on_every_family(
    policy: str, arch: str, tiny_models: dict[str, Path], prompts: Path
) -> None:
    for depth in ("1", "2"):
        overrides = (("plan.depth", depth), ("plan.prefix_cache", "false"))
        comes_again(executed(tiny_models[arch], prompts, policy, overrides=overrides), policy)


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("depth", ["1", "2"])
def test_shared_prefixes_replay(
    depth: str, arch: str, tiny_models: dict[str, Path], alike_prompts: Path
) -> None:
    """Prompts begin alike, so that rows adopt pages: their prompts begin behind those."""
    for policy in ("vllm", "batchgen"):
        overrides = (("plan.depth", depth), ("plan.prefix_cache", "true"))
        lines = executed(tiny_models[arch], alike_prompts, policy, overrides=overrides)
        comes_again(lines, policy)
        begins: dict[int, int] = {}
        for action in (action for line in lines[1:] for action in json.loads(line)["actions"]):
            for row, start, _, _ in action.get("chunks", ()):
                begins.setdefault(row, start)
        assert len(begins) == 16
        assert sum(begins.values()) > 0


def test_overrides_are_part_of_the_log(tiny_models: dict[str, Path], prompts: Path) -> None:
    overrides = (("order.part", "longest"), ("admission.watermark", "0.1"))
    lines = executed(tiny_models["llama"], prompts, "vllm", overrides=overrides)
    assert replay(lines).events == len(lines) - 1
    header = json.loads(lines[0])
    assert header["overrides"]["order.part"] == "longest"


def test_one_altered_field_is_named_by_its_event(log: list[str]) -> None:
    generator = random.Random(5)
    for _ in range(80):
        number = generator.randrange(1, len(log))
        entry = json.loads(log[number])
        path = generator.choice(leaves(entry))
        alter(entry, path)
        lines = [*log[:number], json.dumps(entry, separators=(",", ":")), *log[number + 1 :]]
        with pytest.raises((ReplayMismatch, UserError)) as caught:
            replay(lines)
        assert re.search(rf"event {number}\b", str(caught.value)), (path, str(caught.value))


def test_every_kind_of_line_is_guarded(log: list[str]) -> None:
    """Each event type and action type once, each of its fields."""
    seen: set[str] = set()
    for number, line in enumerate(log[1:], start=1):
        entry = json.loads(line)
        kinds = {entry["event"]["type"], *(action["type"] for action in entry["actions"])}
        if kinds <= seen:
            continue
        seen |= kinds
        for path in leaves(entry):
            changed = json.loads(line)
            alter(changed, path)
            with pytest.raises((ReplayMismatch, UserError), match=rf"event {number}\b"):
                replay([*log[:number], json.dumps(changed)])
    assert {"arrived", "landed", "copies_done", "step", "copy", "finish"} <= seen


def test_lost_doubled_and_swapped_lines(log: list[str]) -> None:
    middle = len(log) // 2
    lost = [*log[:middle], *log[middle + 1 :]]
    doubled = [*log[:middle], log[middle - 1], *log[middle:]]
    swapped = [*log[:middle], log[middle + 1], log[middle], *log[middle + 2 :]]
    for lines in (lost, doubled, swapped):
        with pytest.raises(ReplayMismatch, match=rf"event {middle}\b"):
            replay(lines)


def rechained(log: list[str], change: Any) -> list[str]:
    """The log with one thing changed and all digests made new, as a forger would."""
    items = list(read_log(log))
    header = items[0]
    assert isinstance(header, Header)
    entries = [item for item in items[1:] if isinstance(item, Entry)]
    header, entries = change(header, entries)
    forged = DecisionLog(header)
    for entry in entries:
        forged(entry.event, entry.t, entry.actions)
    return list(forged.lines())


def test_an_altered_action_with_new_digests_is_found_by_the_replay(log: list[str]) -> None:
    from batchgen.step import Step

    items = [item for item in read_log(log) if isinstance(item, Entry)]
    steps = [i for i, item in enumerate(items) if any(type(a) is Step for a in item.actions)]
    for index in (steps[0], steps[len(steps) // 2], steps[-1]):

        def change(header: Header, entries: list[Entry], at: int = index) -> Any:
            actions = [
                Step(a.engine, a.q0, a.epoch, a.n + 1, *_rest(a)) if type(a) is Step else a
                for a in entries[at].actions
            ]
            entries[at] = Entry(entries[at].t, entries[at].event, actions)
            return header, entries

        with pytest.raises(ReplayMismatch, match=rf"event {index + 1} \(.*the replay says"):
            replay(rechained(log, change))


def _rest(step: Any) -> tuple[Any, ...]:
    return (
        step.until,
        step.decode,
        step.joined,
        step.left,
        step.chunks,
        step.checkpoint,
        step.hand,
    )


def test_a_forged_event_cannot_crash_the_replay(log: list[str]) -> None:
    from batchgen import events as ev

    strange = [
        ev.Arrived([10**6]),
        ev.Landed(99, 1, 0, [], 1, "n"),
        ev.RowFailed(10**6, "x"),
        ev.PoolShort(0, 44, 1),
        ev.DeviceLost(7, 0, 0, []),
    ]
    for event in strange:

        def change(header: Header, entries: list[Entry], event: Any = event) -> Any:
            return header, [*entries[:3], Entry(entries[3].t, event, []), *entries[4:]]

        with pytest.raises(ReplayMismatch, match="event 4"):
            replay(rechained(log, change))


def test_a_log_of_another_policy_or_version(log: list[str]) -> None:
    import msgspec

    def other(header: Header, entries: list[Entry]) -> Any:
        return msgspec.structs.replace(header, preset="orca"), entries

    with pytest.raises(ReplayMismatch, match="the replay"):
        replay(rechained(log, other))

    def newer(header: Header, entries: list[Entry]) -> Any:
        return msgspec.structs.replace(header, batchgen_log=99), entries

    with pytest.raises(UserError, match="version 99, this batchgen reads version 4"):
        replay(rechained(log, newer))


def write_log(path: Path, lines: list[str]) -> Path:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))
    return path


def test_the_command_in_a_fresh_process(
    log: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_log(tmp_path / "decisions.jsonl.gz", log)
    monkeypatch.setenv("PYTHONHASHSEED", "12345")
    assert main(["validate", "replay", str(tmp_path), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["equal"] is True
    assert document["events"] == len(log) - 1
    assert document["hash_seed"] == "54321"  # never the seed that the caller has
    entry = json.loads(log[9])
    entry["t"] += 1
    write_log(path, [*log[:9], json.dumps(entry), *log[10:]])
    assert main(["validate", "replay", str(path)]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "not equal:" in err
    assert "event 9 (" in err
    assert "Traceback" not in err


def test_unusable_logs_are_one_line(
    log: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_log(tmp_path / "whole.gz", log).read_bytes()
    text = gzip.compress(b"hello\n")
    steps = json.dumps({**json.loads(log[0]), "full": False})
    files = {
        "damaged": (whole[:200] + bytes(100) + whole[300:], ""),  # what breaks first may vary
        "plain": ("\n".join(log).encode(), "is not gzip"),
        "empty": (b"", "is empty"),
        "text": (text, "the header is no line of a decision log"),
        "steps": (gzip.compress(steps.encode()), "holds steps only"),
    }
    for name, (content, message) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert main(["validate", "replay", str(path), "--no-fresh"]) == 2, name
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), (name, err)
        assert message in err, (name, err)
    for path in (tmp_path / "none.gz", tmp_path):
        assert main(["validate", "replay", str(path)]) == 2
        assert "does not exist; make the run with --out DIR --log full" in capsys.readouterr().err
    write_log(tmp_path / "decisions.jsonl.gz", log)
    for content in ("{", "[]", '{"backend": "sim"}'):
        (tmp_path / "run.json").write_text(content)
        assert main(["validate", "replay", str(tmp_path), "--no-fresh"]) == 2
        assert "run.json is not the run.json of a run" in capsys.readouterr().err


def test_a_cut_log_is_equal_so_far(
    log: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_log(tmp_path / "whole.gz", log).read_bytes()
    path = tmp_path / "cut.gz"
    path.write_bytes(whole[:-9])  # without the end of its gzip: all lines, and no more
    assert main(["validate", "replay", str(path), "--no-fresh"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"equal so far: {len(log) - 1} events")
    assert "not whole: cut.gz stops early, with 0 rows unfinished: its process was killed" in err
    header = gzip.compress((log[0] + "\n").encode())
    path.write_bytes(header[:-8])
    assert main(["validate", "replay", str(path), "--no-fresh"]) == 1
    assert "cut.gz stops early, before its first decision" in capsys.readouterr().err


def simulated(job: SimJob, folder: Path) -> tuple[Path, list[str]]:
    record = simulate(replace(job, log="full"))
    packed = list(record.decisions or ())
    record.decisions = iter(packed)
    write_run(record, folder, plots=False)
    return folder, gzip.decompress(b"".join(packed)).decode().splitlines()


def test_a_simulated_lockstep_engine_with_a_switch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    generator = random.Random(0)
    with trace.open("w") as file:
        for _ in range(60):
            output = int(generator.lognormvariate(6, 1)) + 1
            row = {"prompt_tokens": generator.randrange(100, 2000), "output_tokens": output}
            file.write(json.dumps(row) + "\n")
    folder, lines = simulated(SimJob(trace=str(trace), gpus=16), tmp_path / "run")
    assert any('"type":"switch"' in line for line in lines)
    assert main(["validate", "replay", str(folder)]) == 0
    assert "of batchgen on sim came again" in capfd.readouterr().out


def test_a_simulated_run_with_prefixes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = SimJob(
        trace=str(ROOT / "traces" / "mooncake-conversation.jsonl.gz"),
        model="llama-3.1-8b",
        gpu="h100",
        gpus=2,
        policy="vllm",
        limit=60,
    )
    folder, lines = simulated(job, tmp_path / "run")
    keys = json.loads(lines[0])["page_keys"]
    assert keys[0][0] == keys[1][0]  # rows share their first page
    assert main(["validate", "replay", str(folder), "--no-fresh"]) == 0
    assert "of vllm on sim came again" in capfd.readouterr().out
    entry = json.loads(lines[30])
    entry["t"] += 1
    write_log(folder / "decisions.jsonl.gz", [*lines[:30], json.dumps(entry), *lines[31:]])
    assert main(["validate", "replay", str(folder), "--no-fresh"]) == 1
    assert "event 30 (" in capfd.readouterr().err
