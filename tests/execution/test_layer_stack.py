"""The last layer on the wanted tokens alone, and all layers in one compiled call: the same results
as layer by layer on everything."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from batchgen.exec.arena import KvArena
from batchgen.exec.batch import PassRows
from batchgen.exec.packed import packed_way
from batchgen.exec.transformer import Transformer, load_model
from tests.execution.model_cases import FAMILIES, pass_rows, write_model

PAGE, ROWS, MOST = 8, 9, 70
# Latent attention, and experts with biases, run layer by layer.
STACKED = {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3-moe"}


def random_passes(seed: int) -> list[PassRows]:
    """Prompts in chunks beside decoding rows; the last tokens of some segments are wanted, of all,
    or of none."""
    rng = random.Random(seed)
    done, passes = [0] * ROWS, []
    for _ in range(8):
        taken = rng.sample(range(ROWS), rng.randint(1, ROWS))
        decodes = [row for row in taken if done[row] and rng.random() < 0.7]
        chunks = [row for row in taken if row not in decodes]
        sizes = [1] * len(decodes) + [rng.choice((1, 2, 9, 33)) for _ in chunks]
        segments = [
            (row, done[row], min(size, MOST - done[row]))
            for row, size in zip([*decodes, *chunks], sizes, strict=True)
            if done[row] < MOST
        ]
        if not segments:
            continue
        for row, start, size in segments:
            done[row] = start + size
        total = sum(size for _, _, size in segments)
        rows = pass_rows(
            segments,
            sum(row in decodes for row, _, _ in segments),
            [rng.randrange(60) for _ in range(total)],
        )
        share = rng.choice((0.0, 0.5, 1.0))
        ends = np.array([end for end in np.cumsum(rows.lengths) - 1 if rng.random() < share])
        passes.append(replace(rows, wanted=ends.astype(np.int64)))
    return passes


def run(model: Transformer, passes: list[PassRows]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Logits of every pass, and the KV that they leave."""
    dtype = model.embedding.dtype
    kv = KvArena("hbm", ROWS * 12, model.config.kv_layout, page_tokens=PAGE, dtype=dtype)
    kv.storage.zero_()
    for row in range(ROWS):
        kv.reserve(row, MOST)
    return [model.forward(kv, rows) for rows in passes], kv.storage


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_stack_gives_the_bits_of_the_layers(arch: str, tmp_path: Path) -> None:
    if not packed_way():
        pytest.skip("no packed products on this machine")
    model = load_model(write_model(tmp_path / arch, arch), dtype="bfloat16")
    assert (model.stack is not None) == (arch in STACKED)
    before = torch.get_num_threads()
    try:
        for seed in range(6):
            passes = random_passes(seed)
            torch.set_num_threads(1 + seed % 3)
            stack, got = model.stack, run(model, passes)
            model.stack = None
            wanted = run(model, passes)
            model.stack = stack
            assert all(map(torch.equal, got[0], wanted[0]))
            assert torch.equal(got[1], wanted[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_what_is_not_wanted_changes_nothing(arch: str, exact: bool, tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / arch, arch), exact=exact)
    for seed in range(6):
        some = random_passes(seed)
        every = [replace(rows, wanted=np.arange(len(rows.token_ids))) for rows in some]
        (got, kv), (all_logits, right_kv) = run(model, some), run(model, every)
        wanted = [logits[rows.wanted] for logits, rows in zip(all_logits, some, strict=True)]
        for one, right in zip(got, wanted, strict=True):
            assert one.shape == right.shape
            if exact:
                assert torch.equal(one, right)
            else:
                torch.testing.assert_close(one, right, rtol=0, atol=1e-4)
        assert torch.equal(kv, right_kv) if exact else torch.allclose(kv, right_kv, atol=1e-4)


WITHOUT_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from batchgen.exec.arena import KvArena
from batchgen.exec.batch import PassRows
from batchgen.exec.transformer import load_model

torch.set_num_threads(1)
model = load_model(Path(sys.argv[1]), dtype="bfloat16")
tokens = 60_000
kv = KvArena("hbm", tokens // 8, model.config.kv_layout, page_tokens=8, dtype=torch.bfloat16)
kv.reserve(0, tokens)
rows = PassRows(
    slots=np.array([0]), starts=np.array([0]), lengths=np.array([tokens]), num_decodes=0,
    token_ids=np.ones(tokens, dtype=np.int64), wanted=np.arange(tokens),
)
batch = model._batch(kv, rows)
x = model.embedding.index_select(0, torch.from_numpy(rows.token_ids))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3_000_000, resource.RLIM_INFINITY))
try:
    model.stack.run(x, kv, batch, len(model.layers))
except MemoryError as error:
    print(error)
"""


def test_a_pass_without_memory_is_an_error_and_no_abort(tmp_path: Path) -> None:
    if not packed_way():
        pytest.skip("no packed products on this machine")
    if sys.platform != "linux":
        pytest.skip("no limit of address space")
    path = write_model(tmp_path / "m", "qwen3")
    command = [sys.executable, "-P", "-c", WITHOUT_MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no memory for the compiled operations of a pass\n"
