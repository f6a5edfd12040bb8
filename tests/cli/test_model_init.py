"""`batchgen model init`: what it writes, refuses and replaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.cli import main


def test_model_init(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    assert main(["model", "init", str(folder), "--arch", "qwen3-moe", "--seed", "4"]) == 0
    assert f"wrote {folder}: a random tiny qwen3-moe checkpoint, seed 4" in capsys.readouterr().err
    assert main(["model", "show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_experts"] == 8
    before = (folder / "model.safetensors").read_bytes()
    assert main(["model", "init", str(folder)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["model", "init", str(folder), "--force", "--size", "huge"]) == 2
    assert "unknown size 'huge'; choose one of tiny, small" in capsys.readouterr().err
    assert main(["model", "init", str(tmp_path / "no"), "--arch", "gpt"]) == 2
    assert "unknown arch 'gpt'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (folder / "model.safetensors").read_bytes() == before
    assert main(["model", "init", str(folder), "--force"]) == 0
    assert (folder / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert main(["model", "init", str(other), "--force"]) == 2
    assert "is not a checkpoint (no config.json)" in capsys.readouterr().err
    assert main(["model", "init", str(other / "thesis.tex"), "--force"]) == 2
    assert (other / "thesis.tex").read_text() == "years of work"
