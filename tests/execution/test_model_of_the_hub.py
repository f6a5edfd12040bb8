"""A model by its id on the Hugging Face hub: from the local cache or one line, never a download."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from batchgen.cli import main
from batchgen.errors import UserError
from batchgen.exec.hub import find_model
from batchgen.exec.init import init_model

COMMIT = "0123456789" * 4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of huggingface_hub, which reads its place when it is imported."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_a_model_of_the_cache_runs(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the cache's own form: files of a snapshot are links to blobs."""
    made = init_model(tmp_path / "made")
    model = cache / "models--some--tiny-model"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    (model / "blobs").mkdir()
    for number, path in enumerate(sorted(made.iterdir())):
        shutil.move(path, model / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert find_model(Path("some/tiny-model")) == snapshot
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello", "max_tokens": 3}\n')
    args = ["exec", "--model", "some/tiny-model", "-i", str(tmp_path / "in.jsonl")]
    args += ["-o", str(tmp_path / "o"), "--out", str(tmp_path / "run"), "--threads", "1"]
    assert main(args) == 0
    assert json.loads((tmp_path / "o").read_text())["response"]["body"]["model"] == "tiny-model"
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["model_folder"] == str(snapshot)
    capsys.readouterr()


def test_a_model_that_is_not_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"nor in the local .* cache; download it: hf download a/b"):
        find_model(Path("a/b"))
    with pytest.raises(UserError, match=r"nor in the local Hugging Face cache \(.*repo.id"):
        find_model(Path("a/b--c"))
    for text in ("ab", "/a/b", "./a/b/c", "a/b/c", "../b", "a b/c", "-a/b", "a/\n"):
        with pytest.raises(UserError, match="is not a folder; give a Hugging Face folder"):
            find_model(Path(text))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("a file")
    with pytest.raises(UserError, match="is not a folder; give"):
        find_model(Path("a/b"))
    (tmp_path / "a" / "b").unlink()
    (tmp_path / "a" / "b").mkdir()
    assert find_model(Path("a/b")) == Path("a/b")  # a folder comes first


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it raises ImportError
    with pytest.raises(UserError, match="hub need huggingface_hub; give a folder, or: pip install"):
        find_model(Path("a/b"))
