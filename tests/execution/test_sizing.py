"""Arenas by what runs at once, prompts in one store, memory of the container."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from batchgen.errors import UserError
from batchgen.exec.free_memory import free_memory_bytes
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
from batchgen.exec.prompt_store import PIECE_TOKENS, PromptStore
from batchgen.exec.sizing import pages_wanted

MB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("sizing") / "m", "qwen3", "tiny", seed=3)


def machine(root: Path, available_kb: int, group: str = "") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available_kb} kB\n")
    (root / "proc/self/cgroup").write_text(group)
    return root


def group(folder: Path, version: int, limit: str, usage: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def test_the_machine_alone(tmp_path: Path) -> None:
    assert free_memory_bytes(machine(tmp_path, 2048)) == 2 * MB
    assert free_memory_bytes() > MB


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_counts(tmp_path: Path, version: int) -> None:
    """Cached files are free; groups above count too, and a group without a limit does not."""
    line = "0::/a/b\n" if version == 2 else "7:cpu:/a/b\n4:memory,x:/a/b\n"
    root = machine(tmp_path, 1 << 20, line)
    top = root / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    group(top / "a/b", version, str(100 * MB), 60 * MB, 10 * MB)
    assert free_memory_bytes(root) == 50 * MB
    group(top / "a", version, str(90 * MB), 70 * MB)
    assert free_memory_bytes(root) == 20 * MB
    group(top / "a", version, "max" if version == 2 else str((1 << 63) - 4096), 70 * MB)
    assert free_memory_bytes(root) == 50 * MB
    group(top / "a/b", version, str(100 * MB), 160 * MB)
    assert free_memory_bytes(root) == 0


def test_a_container_sees_its_group_at_the_top(tmp_path: Path) -> None:
    root = machine(tmp_path, 1 << 20, "0::/../of/the/host\n")
    group(root / "sys/fs/cgroup", 2, str(64 * MB), 4 * MB)
    assert free_memory_bytes(root) == 60 * MB


def test_prompts_are_kept_as_they_were() -> None:
    """In memory and mapped, whatever their lengths; nobody can change one."""
    generator = np.random.default_rng(1)
    lengths = [1, 2, PIECE_TOKENS + 5, *generator.integers(1, 400_000, 12).tolist()]
    prompts = [generator.integers(0, 1 << 31, n, dtype=np.int64) for n in lengths]
    store = PromptStore(memory_bytes=PIECE_TOKENS * 8)
    first = 0
    for many in (1, 4, 2, 8):
        some = prompts[first : first + many]
        store.extend(np.concatenate(some).astype(np.int32), np.array([len(one) for one in some]))
        first += many
    assert len(store) == len(prompts) == first
    assert store.sizes().tolist() == lengths
    for number, ids in enumerate(prompts):
        view = store[number]
        assert np.array_equal(ids, view)
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
    assert store.held_bytes <= PIECE_TOKENS * 8
    assert store.mapped_bytes > 0


def test_a_full_disk_is_met_before_prompts_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped page without a place on the disk would end the process by a signal."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"no room for the prompts in .*TMPDIR"):
        PromptStore(memory_bytes=0).extend(np.ones(1, dtype=np.int32), np.ones(1, dtype=np.int64))


def test_arenas_do_not_grow_with_the_job(model: Path, tmp_path: Path) -> None:
    sizes = []
    for rows in (16, 64, 1024):
        path = tmp_path / f"{rows}.jsonl"
        path.write_text('{"prompt": [1, 2, 3], "max_tokens": 200}\n' * rows)
        job = ExecJob(
            model=model,
            input=path,
            output=tmp_path / "out",
            policy="batchgen",
            overrides=(("plan.max_num_seqs", "16"),),
        )
        engine = prepare(job).plan.engines[0]
        sizes.append((engine.hbm_pages, engine.host_pages))
    assert sizes[0][0] == sizes[1][0] == sizes[2][0]
    assert sizes[0][1] < sizes[1][1] == sizes[2][1]


def test_pages_of_the_longest_rows() -> None:
    lengths = [1, 64, 65, 640]
    assert pages_wanted(lengths, 64, 16, 1) < pages_wanted(lengths, 64, 16, 2)
    assert pages_wanted(lengths, 64, 16, 4) == pages_wanted(lengths, 64, 16)
    assert pages_wanted(lengths[::-1], 64, 16, 2) == pages_wanted(lengths, 64, 16, 2)


CHILD = """
import resource, sys
from pathlib import Path
from batchgen.exec.job import ExecJob
from batchgen.exec.prepare import prepare
def job(limit):
    model, rows = map(Path, sys.argv[1:])
    return ExecJob(model=model, input=rows, output=Path("out"), limit=limit)
prepare(job(1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepared = prepare(job(None))
assert len(prepared.jobs) == 100_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_many_rows_prepare_in_little_memory(model: Path, tmp_path: Path) -> None:
    """100,000 rows of 200 tokens: under 400 MB beyond model and arenas."""
    generator = np.random.default_rng(0)
    with (tmp_path / "in.jsonl").open("w") as file:
        for _ in range(100_000):
            ids = ",".join(map(str, generator.integers(0, 256, 200).tolist()))
            file.write(f'{{"prompt":[{ids}]}}\n')
    command = [sys.executable, "-P", "-c", CHILD, str(model), str(tmp_path / "in.jsonl")]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(child.stdout) * unit < 400 * MB
