"""`batchgen trace` from the outside: data on stdout, talk on stderr, nothing written over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchgen.cli.trace import app
from batchgen.errors import UserError
from batchgen.trace import load

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"


def run(*args: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None:
        raise result.exception
    return result.stdout, result.stderr


def test_import_stats_plot(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text(AZURE + "2023-11-16 18:15:47.68,0,0\nbroken\n2023-11-16 18:15:48.68,5,6\n")
    target = str(tmp_path / "a.jsonl.gz")
    with pytest.raises(UserError, match=r"a\.csv:4"):
        run("import", str(source), "-o", target)
    assert not Path(target).exists()
    out, err = run(
        "import", str(source), "-o", target, "--skip-bad", "--licence", "CC-BY-4.0", "--name", "n"
    )
    assert out == ""
    assert "skipped: 1 bad lines" in err
    assert "dropped: 1 rows" in err
    trace = load(target)
    assert (len(trace), trace.name, trace.meta["licence"]) == (2, "n", "CC-BY-4.0")
    with pytest.raises(UserError, match="exists already"):
        run("import", str(source), "-o", target)

    out, err = run("stats", target, "--json")
    found = json.loads(out)["traces"][0]
    assert found["rows"] == 2
    assert found["skipped"]["lines"] == 1
    assert err == ""
    out, _ = run("stats", target)
    assert "n: 2 rows, 429 tokens" in out

    picture = tmp_path / "a.png"
    out, err = run("plot", target, "-o", str(picture), "--json")
    assert json.loads(out)["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_generate(tmp_path: Path) -> None:
    target = tmp_path / "g.jsonl"
    lengths = "lognormal:mean=70,sigma=0.8"
    common = ["-n", "40", "--seed", "5", "--samples", "4", "--rate", "2", "--expert-skew", "1.2"]
    out, _ = run(
        "generate", "-o", str(target), *common, "--prompt-tokens", lengths, "--output-tokens", "9",
        "--json",
    )  # fmt: skip
    assert json.loads(out)["trace"]["groups"]["count"] == 10
    trace = load(target)
    assert trace.expert_skew == 1.2
    assert trace.meta["prompt_tokens"] == lengths
    parts = ["--part", "1 / 5 / 6", "--part", "1 / 7 / 8"]
    run("generate", "-o", str(target), "-n", "9", *parts, "--force")
    assert set(load(target).prompt_tokens.tolist()) == {5, 7}
    for wrong in (
        ["--prompt-tokens", "5"],
        [*parts, "--prompt-tokens", "5"],
        ["--part", "x / 5 / 6"],
        ["--part", "1 / 5"],
    ):
        with pytest.raises(UserError):
            run("generate", "-o", str(tmp_path / "h.jsonl"), "-n", "9", *wrong)
    assert not (tmp_path / "h.jsonl").exists()


def test_requests_and_rate_scale_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude"):
        run("import", ".", "-o", str(tmp_path / "x"), "--requests", "5", "--rate-scale", "2")


def test_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, batchgen.cli.trace as t\n"
        "heavy = {'numpy', 'msgspec', 'pandas', 'pyarrow', 'matplotlib', 'torch', 'simpy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "import batchgen.trace.formats.registry, batchgen.trace.generate, batchgen.trace.plot\n"
        "print(sorted((heavy - {'numpy', 'msgspec'}) & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["[]", "[]"]
