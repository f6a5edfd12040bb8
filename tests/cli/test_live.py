"""What is shown of a job: the display, lines that grow rarer, JSON events; options that clash."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from batchgen.cli import live
from batchgen.cli.live import Plain, left, mode_of, parts, shown
from batchgen.errors import UserError
from batchgen.job.error_limit import ErrorLimit, parse_error_limit
from batchgen.job.forecast import forecast_of
from batchgen.job.snapshot import Expected, Snapshot

ONE = Snapshot(
    rows=8800,
    done=1230,
    failed=4,
    earlier=1000,
    elapsed_s=63.0,
    running=256,
    waiting=7310,
    input_tokens=70_000,
    output_tokens=63_000,
    input_tokens_per_s=1203.0,
    output_tokens_per_s=998.0,
    kv_pages=810,
    kv_pages_total=1000,
    phase="steady",
    left_s=(180.0, 300.0),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_number_that_matters_is_shown() -> None:
    text = "\n".join(line for _, line in parts(ONE))
    for one in (
        "1,234/8,800 rows, 4 failed, 1,000 of them earlier",
        "998 tokens/s out (mean 1,000), 1,203 in",
        "256 running, 7,310 waiting, KV 81.0 % of 1,000 pages",
        "63.0 s gone, 3 min 00 s to 5 min 00 s left (steady)",
    ):
        assert one in text
    assert left(replace(ONE, left_s=None)) == "unknown"
    told = replace(
        ONE, expected=Expected(total_s=90.0, sequences=700, output_tokens=50_000, slower=0.8)
    )
    assert parts(told)[-1] == (
        "simulator",
        "said 90.0 s in all; 63,000 of 50,000 tokens by now; 20% faster so far",
    )


def test_the_display_shows_the_same_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert mode_of("auto", quiet=False, json_events=False) == "bar"
    with shown("bar", "model, batchgen") as watch:
        assert watch is not None
        watch(ONE)
        drawn = terminal.getvalue()
    for word in ("model, batchgen", "1,234/8,800 rows", "256 running", "left (steady)"):
        assert word in drawn
    assert "\x1b[1A" in terminal.getvalue()  # lines are taken away again


def test_lines_grow_rarer(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    plain = Plain("m", 5.0, clock=lambda: now)
    for second in range(86_400):
        now = float(second)
        plain(ONE)
    lines = capsys.readouterr().err.splitlines()
    assert 50 < len(lines) < 400
    assert lines[0].startswith("m: 1,234/8,800 rows, 4 failed")


def test_events_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("json", "m") as watch:
        assert watch is not None
        watch(ONE)
    live.Talk(as_json=True).say("a note")
    live.Talk(quiet=True).say("nothing")
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["event"] for one in events] == ["progress", "note"]
    assert events[0] | ONE.as_json() == events[0]
    assert events[1]["text"] == "a note"
    with shown("off", "m") as watch:
        assert watch is None


@pytest.mark.parametrize(
    ("progress", "quiet", "json_events", "want"),
    [
        ("auto", False, False, "plain"),
        ("auto", True, False, "off"),
        ("auto", False, True, "json"),
        ("bar", False, False, "bar"),
        ("off", True, False, "off"),
        ("bar", True, False, "--quiet shows no progress"),
        ("auto", True, True, "--quiet shows no progress"),
        ("plain", False, True, "--json-events and --progress plain"),
        ("fast", False, False, "--progress is 'fast'"),
    ],
)
def test_modes(
    progress: str, quiet: bool, json_events: bool, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    if want in live.MODES:
        assert mode_of(progress, quiet=quiet, json_events=json_events) == want
        return
    with pytest.raises(UserError, match=want):
        mode_of(progress, quiet=quiet, json_events=json_events)


def test_a_forecast_is_read_at_any_time() -> None:
    ps = 10**12
    import numpy as np

    found = forecast_of(
        np.array([3, 1, 2]) * ps,
        np.array([1, 2, 3]) * ps,
        np.array([30, 20, 10]),
        kv_peak_pages=5,
        guess="g",
        spread=(0.9, 1.2),
    )
    assert found.total_s == 3.0
    assert found.range_s == pytest.approx((2.7, 3.6))
    at = found.at(2 * ps + 1, 30)
    assert (at.sequences, at.output_tokens, at.slower) == (2, 50, pytest.approx(2.0))
    start = found.at(0, 0)
    assert (start.sequences, start.output_tokens, start.slower) == (0, 0, None)
    assert found.at(9 * ps, 99).sequences == 3
    empty = forecast_of(np.array([]), np.array([]), np.array([]), kv_peak_pages=0, guess="")
    assert empty.at(ps, 5).slower is None


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0", ErrorLimit(rows=0)),
        ("17", ErrorLimit(rows=17)),
        ("5%", ErrorLimit(part=0.05)),
        ("0.5 %", ErrorLimit(part=0.005)),
        (None, None),
        ("-1", ""),
        ("101%", ""),
        ("x", ""),
        ("%", ""),
        ("nan%", ""),
        ("9" * 5000, ""),
        ("1e3", ""),
    ],
)
def test_limits_of_errors(text: str | None, want: object) -> None:
    if want == "":
        with pytest.raises(UserError, match="--max-errors is") as caught:
            parse_error_limit(text, "row")
        assert len(str(caught.value)) < 200
    else:
        assert parse_error_limit(text, "row") == want
    assert parse_error_limit(None, "stop") == ErrorLimit(rows=0)
    for on_error in ("stop", "never"):
        with pytest.raises(UserError):
            parse_error_limit("1", on_error)
