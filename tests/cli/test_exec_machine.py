"""The machine of `batchgen exec`: threads that wait, memory that is short."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.exec import worker as workers


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_short_memory_is_no_bug(
    error: Exception,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(workers, "load_model", short)
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 2}\n')
    assert main(["exec", "--model", str(model), "-i", str(path), "-o", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.startswith("error: memory is short; ")


def test_the_threads_are_calm_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    from batchgen.cli.torch_threads import calm_threads

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    calm_threads()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    calm_threads()
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 100_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
