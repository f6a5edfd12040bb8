"""The device trace format and its generator: round trips, hostile lines, rates that come out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from batchgen.errors import DataError, UserError
from batchgen.trace.devices import DeviceTrace, Trouble, compose, load, save
from batchgen.trace.devices.generate import KINDS, DrawOptions, draw
from batchgen.trace.devices.plot import plot
from batchgen.trace.devices.rates import catalog, rates
from batchgen.trace.devices.stats import describe

S = 10**12
HOUR = 3600 * S


def line_error(tmp_path: Path, line: str) -> str:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"at_s": 1, "kind": "lost"}', "field 'gpu': missing"),
        ('{"at_s": 1, "kind": "lost", "gpu": 0, "node": 0}', "field 'node'"),
        ('{"at_s": 1, "kind": "lost", "gpu": 1e9}', "field 'gpu'"),
        ('{"at_s": 1, "kind": "lost", "node": -1}', "field 'node'"),
        ('{"at_s": 1, "kind": "lost", "gpu": 0, "factor": 2}', "field 'factor'"),
        ('{"at_s": 1, "kind": "lost", "gpu": 0, "deadline_s": 2}', "field 'deadline_s'"),
        ('{"at_s": 1, "kind": "back", "gpu": 0, "for_s": 2}', "field 'for_s'"),
        ('{"at_s": 1, "kind": "notice", "gpu": 0, "deadline_s": -1}', "field 'deadline_s'"),
        ('{"at_s": "NaN", "kind": "lost", "gpu": 0}', "field 'at_s'"),
        ('{"at_s": 1e999, "kind": "lost", "gpu": 0}', "field 'at_s'"),
        ('{"at_s": 1, "kind": "host", "gpu": 0, "factor": 0.5}', "field 'factor'"),
        ('{"at_s": 1, "kind": "skew", "gpu": 0, "factor": 1}', "field 'gpu'"),
        ('{"at_s": 1, "kind": "skew", "factor": 11}', "field 'factor'"),
        ('{"at_s": 1, "kind": "slow", "gpu": 0, "factor": 1e999}', "field 'factor'"),
        ('{"batchgen_devices": 2}', "field 'batchgen_devices'"),
        ('{"batchgen_devices": 1, "gpus": -1}', "header"),
        ('{"batchgen_devices": 1, "span_s": -1}', "field 'span_s'"),
        ("[" * 100_000, "t.jsonl:1"),
        ("\x00\x01", "t.jsonl:1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in line_error(tmp_path, line)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    trace = draw(DrawOptions(gpus=16, hours=50, kinds=KINDS, seed=3), rates())
    odd = Trouble(123_456_789_012_345, "slow", 3, factor=1001, for_ps=1)
    trace = DeviceTrace(
        name="t",
        troubles=(*trace.troubles, odd),
        gpus=16,
        gpus_per_node=8,
        span_ps=trace.span_ps,
        meta=trace.meta,
    )
    for name in ("a.jsonl", "a.jsonl.gz"):
        save(trace, tmp_path / name)
        assert load(tmp_path / name) == trace
    again = tmp_path / "b.jsonl.gz"
    save(load(tmp_path / "a.jsonl"), again)
    assert again.read_bytes() == (tmp_path / "a.jsonl.gz").read_bytes()
    with pytest.raises(UserError, match="exists"):
        save(trace, again)


# -- the generator --------------------------------------------------------------------------------


def test_every_number_has_a_source() -> None:
    assert set(catalog()) == set(KINDS)
    assert all(len(one.source) > 5 for of in catalog().values() for one in of.values())


def test_a_seed_is_a_trace_and_kinds_do_not_disturb_each_other() -> None:
    options = DrawOptions(gpus=64, hours=200, kinds=KINDS)
    whole = draw(options, rates())
    assert draw(options, rates()) == whole
    assert draw(DrawOptions(gpus=64, hours=200, kinds=KINDS, seed=1), rates()) != whole
    parts = [
        one
        for kind in KINDS
        for one in draw(DrawOptions(gpus=64, hours=200, kinds=(kind,)), rates()).troubles
    ]
    key = repr
    assert sorted(parts, key=key) == sorted(whole.troubles, key=key)


def test_rates_come_out() -> None:
    """Within four standard errors of a Poisson count."""
    hours, gpus = 1000.0, 1024
    trace = draw(DrawOptions(gpus=gpus, hours=hours, kinds=KINDS), rates())
    count = {
        "failures": [t for t in trace.troubles if t.kind == "lost"],
        "host": [t for t in trace.troubles if t.kind == "host"],
        "slow": [t for t in trace.troubles if t.kind == "slow" and t.at_ps],
    }
    nodes = gpus / 8
    reclaims = len([t for t in trace.troubles if t.kind == "notice"])
    wanted = {
        "host": nodes * 0.016 * hours,
        "slow": (gpus * 0.003 + nodes * 0.02) * hours,
        "failures": gpus / 50_000 * hours + reclaims,
    }
    for name, expected in wanted.items():
        assert abs(len(count[name]) - expected) < 4 * expected**0.5, name
    expected = nodes * 0.1 * hours  # bursts are cut at six nodes
    assert 0.9 * expected < reclaims < 1.05 * expected
    assert {t.deadline_ps for t in trace.troubles if t.kind == "notice"} == {30 * S}
    exponents = [t.factor for t in trace.troubles if t.kind == "skew"]
    assert 0 <= min(exponents) < max(exponents) <= 1200


def test_numbers_can_be_changed_and_are_checked() -> None:
    changed = rates([("spot.notice_s", "120")])
    assert changed["spot"]["notice_s"] == 120
    for key, value, message in (
        ("spot.melt", "1", "known: spot.node_per_h"),
        ("melt.spot", "1", "known: failures, spread"),
        ("spot.node_per_h", "-1", "from 0"),
        ("spot.node_per_h", "nan", "from 0"),
        ("spot.node_per_h", "1e12", "from 0"),
        ("failures.mtbf_gpu_h", "0", "above 0"),
        ("failures.node_share", "2", "to 1"),
        ("host.low", "9", "is above"),
    ):
        with pytest.raises(UserError, match=message):
            rates([(key, value)])
    with pytest.raises(UserError, match="lower its rate"):
        draw(DrawOptions(gpus=8, hours=6, kinds=("slow",)), rates([("slow.gpu_per_h", "1e9")]))
    for wrong in ({"gpus": 0}, {"hours": 0}, {"hours": float("nan")}, {"kinds": ("melt",)}):
        with pytest.raises(UserError):
            DrawOptions(**{"gpus": 8, **wrong})  # type: ignore[arg-type]


# -- statistics and pictures ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_statistics_against_a_count_of_instants(seed: int) -> None:
    rng = random.Random(seed)
    lines = []
    for _ in range(12):
        at, gpu = rng.randrange(50), rng.randrange(4)
        if rng.random() < 0.5:
            lines.append(Trouble(at, "lost", gpu, for_ps=rng.randrange(1, 20)))
        else:
            factor = rng.choice((500, 2000, 4000))
            lines.append(Trouble(at, "slow", gpu, factor=factor, for_ps=rng.randrange(1, 20)))
    trace = DeviceTrace(name="t", troubles=tuple(lines), gpus=4, span_ps=60)
    found = describe(trace)
    lost = slow = 0
    capacity = 0.0
    for at in range(60):
        for gpu in range(4):
            on = [t for t in lines if t.gpu == gpu and t.at_ps <= at < t.at_ps + t.for_ps]
            factors = [t.factor for t in on if t.kind == "slow"]
            factor = max(factors, default=1000)
            down = any(t.kind == "lost" for t in on)
            lost += down
            slow += factor > 1000 and not down
            capacity += 0 if down else 1000 / factor
    assert found["lost_share"] == pytest.approx(lost / 240)
    assert found["slow_share"] == pytest.approx(slow / 240)
    assert found["capacity"] == pytest.approx(capacity / 240)


def test_a_picture(tmp_path: Path) -> None:
    trace = draw(DrawOptions(gpus=16, hours=30, kinds=KINDS), rates())
    for name in ("a.png", "b.png"):
        plot(trace, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    plot(DeviceTrace(name="none", troubles=()), tmp_path / "c.svg")
    with pytest.raises(UserError, match=r"\.png"):
        plot(trace, tmp_path / "a.txt")


# -- the shipped ones -----------------------------------------------------------------------------

FOLDER = Path(__file__).parents[2] / "traces" / "devices"


def test_shipped_device_traces() -> None:
    """Checksums, licences, and the numbers of the page."""
    import hashlib
    import re

    readme = (FOLDER / "README.md").read_text()
    sums = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    files = {path.name: path for path in FOLDER.glob("*.jsonl")}
    assert set(files) == set(sums)
    assert sum(path.stat().st_size for path in files.values()) < 100_000
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sums[name]
        trace = load(path)
        assert {"source", "licence"} <= set(trace.meta)
        found = describe(trace)
        row = re.search(rf"^\| {trace.name} \|(.*)\|$", readme, re.MULTILINE)
        assert row is not None, name
        gpus, hours, lines, losses, capacity = (cell.strip() for cell in row[1].split("|"))
        assert int(gpus) == found["gpus"]
        assert hours == f"{found['span_h']:.2f}"
        assert (int(lines), int(losses)) == (found["lines"], found["losses"])
        assert capacity == f"{found['capacity']:.3f}"
        assert compose(trace.troubles, trace.gpus, 1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from batchgen.cli import main

    drawn, cut = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    assert main(["trace", "devices", "generate", "-o", drawn, "--gpus", "16", "--hours", "99"]) == 0
    options = ["--start-s", "3600", "--duration-s", "7200", "--gpus", "8", "--name", "part"]
    assert main(["trace", "devices", "import", drawn, "-o", cut, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["trace"]
    assert (found["gpus"], found["span_h"]) == (8, 2)
    assert main(["trace", "devices", "stats", drawn, cut]) == 0
    assert "part: 8 GPUs, 2.00 h" in capsys.readouterr().out
    assert main(["trace", "devices", "plot", cut, "-o", str(tmp_path / "c.png")]) == 0
    assert main(["trace", "devices", "rates", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("drawn")[-1])["schema"] == 1
    (tmp_path / "bad.csv").write_text("0,add,a\n0,add,a\n")
    assert main(["trace", "devices", "import", str(tmp_path / "bad.csv"), "-o", cut]) == 2
