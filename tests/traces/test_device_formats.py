"""Device traces of other projects: what each becomes, and one clear line for what is wrong."""

from __future__ import annotations

import random
from itertools import groupby
from pathlib import Path

import pytest

from batchgen.errors import DataError, UserError
from batchgen.trace.devices import compose
from batchgen.trace.devices.formats import ImportOptions, detect, import_devices

S = 10**12
BAMBOO = """0,add,a
0,add,b
60000,add,c
200000,remove,a
200000,remove,c
260000,add,d
320000,remove,b
"""
GCP = """2021-12-11, 11:00:00, 62
2021-12-11, 11:01:40, 62
2021-12-11, 11:03:20, 60
2021-12-11, 11:05:00, 61
"""
PAI = ",worker,gpu,time,batch_time_norm\n" + "".join(
    f"{n},{worker},25,{at},{(200 if worker == 2 and 60 <= at < 120 else 100) + worker % 2}\n"
    for n, (at, worker) in enumerate(
        (at, worker) for at in range(1, 180, 10) for worker in range(5)
    )
)


def written(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_machines_that_come_and_go(tmp_path: Path) -> None:
    """A machine takes the lowest free place; the notice is as long as it lived at most."""
    trace = import_devices(written(tmp_path, BAMBOO))
    found = [(one.at_ps // S, one.kind, one.gpu, one.deadline_ps // S) for one in trace.troubles]
    assert found == [
        (0, "lost", 2, 0),
        (60, "back", 2, 0),
        (80, "notice", 0, 120),
        (80, "notice", 2, 120),
        (200, "lost", 0, 0),
        (200, "lost", 2, 0),
        (200, "notice", 1, 120),
        (260, "back", 0, 0),
        (320, "lost", 1, 0),
    ]
    assert trace.gpus == 3
    assert trace.meta["format"] == "bamboo"
    short = import_devices(tmp_path / "t.csv", options=ImportOptions(notice_s=0))
    assert not any(one.kind == "notice" for one in short.troubles)


@pytest.mark.parametrize("seed", range(30))
def test_as_many_are_up_as_the_source_says(tmp_path: Path, seed: int) -> None:
    """Oracle: count the names that are there. Random machines, many at one time."""
    rng = random.Random(seed)
    up: list[str] = []
    lines, wanted, at = [], {}, 0
    for number in range(60):
        at += rng.choice((0, 0, 30, 300))
        if up and rng.random() < 0.45:
            lines.append(f"{at * 1000},remove,{up.pop(rng.randrange(len(up)))}")
        else:
            up.append(f"n{number}")
            lines.append(f"{at * 1000},add,n{number}")
        wanted[at] = len(up)
    trace = import_devices(written(tmp_path, "\n".join(lines)))
    assert up_after(trace.troubles, trace.gpus).items() >= {
        (at * S, count) for at, count in wanted.items() if at
    }


def up_after(troubles: object, places: int) -> dict[int, int]:
    """GPUs that are up, after each time at which one is lost or back; filled in every second."""
    up = [True] * places
    counts: dict[int, int] = {}
    changes = compose(list(troubles), places, 1)  # type: ignore[call-overload]
    times = {at: list(group) for at, group in groupby(changes, key=lambda one: one.at_ps)}
    for at in range(0, 20_000 * S, 30 * S):
        for change in times.get(at, []):
            if change.kind in ("lost", "back"):
                up[change.gpu] = change.kind == "back"
        counts[at] = sum(up)
    return counts


def test_counts_of_machines(tmp_path: Path) -> None:
    path = written(tmp_path, GCP)
    trace = import_devices(path)
    changes = compose(trace.troubles, 64, 1)
    assert [(one.at_ps // S, one.gpu) for one in changes if one.kind == "lost"][:2] == [
        (0, 62),
        (0, 63),
    ]
    up = 64
    seen = {}
    for change in changes:
        up += {"lost": -1, "back": 1}.get(change.kind, 0)
        seen[change.at_ps // S] = up
    assert (seen[0], seen[200], seen[300]) == (62, 60, 61)
    assert [one.gpu for one in changes if one.kind == "back"] == [62]  # away longest
    assert {one.deadline_ps // S for one in trace.troubles if one.kind == "notice"} == {30}
    other = import_devices(path, options=ImportOptions(seed=1))
    assert other.troubles != trace.troubles


def test_workers_of_a_job(tmp_path: Path) -> None:
    trace = import_devices(written(tmp_path, PAI))
    assert trace.meta["format"] == "pai-minibatch"
    found = [(one.at_ps // S, one.gpu, one.factor) for one in trace.troubles]
    assert found == [(60, 2, 1980), (120, 2, 1000)]


def test_machines_may_be_nodes(tmp_path: Path) -> None:
    trace = import_devices(written(tmp_path, BAMBOO), options=ImportOptions(as_nodes=True))
    assert {one.gpu for one in trace.troubles} == {-1}
    with pytest.raises(UserError, match="gpus_per_node"):
        trace.sizes()


def test_formats_are_told_apart(tmp_path: Path) -> None:
    for text, name in ((BAMBOO, "bamboo"), (GCP, "bamboo-gcp"), (PAI, "pai-minibatch")):
        assert detect(written(tmp_path, text)) == name
    assert detect(written(tmp_path, '{"at_s":1,"kind":"lost","gpu":0}\n')) == "batchgen"


HOSTILE = [
    ("", "first line: nothing"),
    ("hello world\n", "first line: hello world"),
    ("0,add,a\n5,remove,b\n", ":2: field 'node': 'b' is removed and not there"),
    ("0,add,a\n5,add,a\n", ":2: field 'node': 'a' is added twice"),
    ("5,add,a\n0,add,b\n", ":2: field 'time_ms': earlier"),
    ("0,add,a\n1e99,add,b\n", ":2: field 'time_ms'"),
    ("0,add,a\nnan,add,b\n", ":2: field 'time_ms'"),
    ("0,add,a\n1,melt,a\n", ":2: field 'event'"),
    ("0,add,a\n1,add\n", ":2: 2 columns, not 3"),
    ("2021-12-11, 11:00:00, 9\n2021-12-11, 10:00:00, 9\n", ":2: field 'time'"),
    ("2021-12-11, 11:00:00, 9\n2021-13-11, 10:00:00, 9\n", ":2: field 'time'"),
    ("2021-12-11, 11:00:00, 9\n2021-12-11, 12:00:00, 65\n", ":2: field 'instances': more than 64"),
    ("2021-12-11, 11:00:00, 9\n2021-12-11, 12:00:00, -1\n", ":2: field 'instances'"),
    (",worker,gpu,time,batch_time_norm\n0,x,25,1,4\n", ":2: field 'worker'"),
    (",worker,gpu,time,batch_time_norm\n0,999999,25,1,4\n", ":2: field 'worker'"),
    (",worker,gpu,time,batch_time_norm\n0,1,25,1,\n", ":2: field 'batch_time_norm'"),
    (",worker,gpu,time,batch_time_norm\n", "no usable lines"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        import_devices(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"0,add,a\n\xff\xfe,add,b\n9000,add,c\n")
    with pytest.raises(DataError, match=r":2: not a line of text"):
        import_devices(path)
    trace = import_devices(path, skip_bad=True)
    assert trace.meta["skipped"]["lines"] == 1
    assert trace.gpus == 2
