"""How steady the machine of a profile was: read, carried to reports, refused where it is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchgen.cli import main
from batchgen.cli.prediction import _range, _steadiness
from batchgen.cost.profile_schema import Spread, parse_profile
from batchgen.cost.residuals import Kind, find
from batchgen.errors import DataError
from batchgen.report import text

HEADS = {"heads": 8, "kv_heads": 2, "head_dim": 32}


def document(calibration: Any) -> dict[str, Any]:
    return {
        "schema": 2,
        "kind": "batchgen-profile",
        "gemm": [{"m": 1, "n": 64, "k": 64, "dtype": "fp32", "seconds": 1e-6}],
        "decode_attention": [{**HEADS, "rows": 1, "context": 64, "seconds": 1e-6}],
        "prefill_attention": [{**HEADS, "chunk": 64, "start": 0, "seconds": 1e-6}],
        "copies": {"host_bytes_per_s": 1e9},
        "calibration": calibration,
    }


@given(times=st.lists(st.floats(1e-6, 1e3), min_size=3, max_size=3).map(sorted))
def test_the_spread_is_least_and_most_over_the_median(times: list[float]) -> None:
    least, median, most = times
    found = parse_profile(document({"least_s": least, "median_s": median, "most_s": most}))
    assert found.spread == Spread(least=least / median, most=most / median)
    kind = Kind(costs="profile", gpu="h100", engine="vllm", model_kind="dense")
    assert (find(kind, []).least, find(kind, []).most) == (None, None)


@pytest.mark.parametrize(
    "calibration",
    [
        3,
        {},
        {"least_s": 1, "median_s": 2, "most_s": "x"},
        {"least_s": 0, "median_s": 2, "most_s": 3},
        {"least_s": 2, "median_s": 1, "most_s": 3},
        {"least_s": 1, "median_s": 3, "most_s": 2},
    ],
)
def test_what_is_no_calibration_is_refused(calibration: Any) -> None:
    with pytest.raises(DataError, match="calibration"):
        parse_profile(document(calibration))


def test_a_profile_without_one_says_so() -> None:
    assert parse_profile(document(None)).spread is None
    assert "does not say" in _steadiness(None)
    assert _range({"predicted_bct_range_s": None}) == ""


def test_reports_name_it() -> None:
    kind = Kind(
        costs="profile", gpu="h100", engine="vllm", model_kind="dense", least=0.97, most=1.21
    )
    known = asdict(find(kind, []))
    assert text.residual(known) == "-3 to +21 % (machine's speed)"
    assert "a small job took -3 to +21 % of its median" in str(text.residual_line(known))
    known |= {"median": 0.05, "p90": 0.1, "count": 10, "source": "bench x", "result": "x.json"}
    assert text.residual(known) == "± 10 % (bench x, 90th)"
    assert "-3 to +21 %" in str(text.residual_line(known))
    assert "-3 to +21 %" in _steadiness(Spread(least=0.97, most=1.21))
    assert _range({"predicted_bct_range_s": [0.5, 2]}) == " [0.500, 2.000]"


def test_a_simulation_with_a_profile_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile, trace = tmp_path / "p.json", tmp_path / "t.jsonl"
    profile.write_text(json.dumps(document({"least_s": 0.9, "median_s": 1.0, "most_s": 1.3})))
    trace.write_text('{"prompt_tokens": 40, "output_tokens": 12}\n' * 8)
    command = ["sim", "--trace", str(trace), "--model", "qwen3-8b", "--gpus", "1", "--json"]
    assert main([*command, "--layout", "tp1", "--profile", str(profile)]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert (run["residual"]["least"], run["residual"]["most"]) == (0.9, 1.3)
    assert main([*command, "--layout", "tp1"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["residual"]["least"] is None
