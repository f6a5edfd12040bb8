"""Numbers at the ends of what there is: one line, never a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.cli import main


@pytest.mark.parametrize("rate", ["1e-320", "1e-300", "5e-324"])
def test_rates_as_small_as_numbers_get(
    rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["trace", "generate", "--rows", "9", "--rate", rate, "-o", str(tmp_path / "t.jsonl")]
    command += ["--prompt-tokens", "constant:5", "--output-tokens", "constant:5"]
    assert main(command) == 2
    assert "take more than 106 days; raise the rate" in capsys.readouterr().err


def test_weights_without_a_sum(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    command = [
        "trace",
        "generate",
        "--rows",
        "50",
        "-o",
        str(path),
        "--output-tokens",
        "constant:5",
    ]
    assert main([*command, "--prompt-tokens", "1e308*constant:5 + 1.7e308*constant:7"]) == 0
    text = path.read_text()
    assert '"prompt_tokens":5' in text.replace(" ", "")
    assert '"prompt_tokens":7' in text.replace(" ", "")
