"""Oracle: answers and their logits against Hugging Face transformers, float32, both modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import FAMILIES

from batchgen.exec.init import init_model
from batchgen.exec.worker import Worker

transformers = pytest.importorskip("transformers")

PROMPTS = (1, 5, 16, 17, 40, 63, 64, 90)
NEW_TOKENS = 20
NEAR_TIE = 1e-3
PAGE = 16


def answers_with_logits(worker: Worker, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Answer all prompts in mixed passes of ragged chunks; logits [NEW_TOKENS, vocab] of each."""
    seen: list[torch.Tensor] = []
    forward = worker.model.forward

    def keep(*arguments: object) -> torch.Tensor:
        seen.append(forward(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    worker.model.forward = keep  # type: ignore[method-assign, assignment]
    for row, ids in enumerate(prompts):
        worker.add_row(row, ids, max_output=NEW_TOKENS, stop_ids=frozenset())
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    running: list[int] = []
    done: set[int] = set()
    while len(done) < len(prompts):
        chunks = []
        for row, ids in enumerate(prompts):
            start, size = worker.computed_tokens(row), 11 + 3 * row
            if start < len(ids) and row not in running and row not in done:
                length = min(size, len(ids) - start)
                chunks.append((row, start, length, start + length == len(ids)))
        result = worker.run_pass(running, chunks)
        fresh = [row for row, _, _, last in chunks if last]
        for row, values in zip([*running, *fresh], seen[-1], strict=True):
            logits[row].append(values)
        done |= {row for row, _ in result.finished}
        running = [row for row in [*running, *fresh] if row not in done]
    return [torch.stack(parts) for parts in logits]


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_answers_and_logits_are_those_of_transformers(
    arch: str, tied: bool, exact: bool, tmp_path: Path
) -> None:
    """Logits within 1e-4 of the oracle that is given our answer, and our token its best one unless
    its two best are closer than NEAR_TIE."""
    directory = init_model(tmp_path / "m", arch, "tiny", seed=4, tie_word_embeddings=tied)
    generator = np.random.default_rng(5)
    prompts = [generator.integers(0, 256, n).tolist() for n in PROMPTS]
    worker = Worker(directory, page_tokens=PAGE, hbm_pages=64, host_pages=0, exact=exact)
    ours = answers_with_logits(worker, prompts)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    clear = 0
    for row, ids in enumerate(prompts):
        answer = worker.tokens(row)
        with torch.inference_mode():
            expected = oracle(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        torch.testing.assert_close(ours[row], expected, atol=1e-4, rtol=0)
        best, second = expected.topk(2).values.unbind(-1)
        certain = best - second > NEAR_TIE
        assert torch.equal(expected.argmax(-1)[certain], torch.tensor(answer)[certain])
        clear += int(certain.sum())
    assert clear > 0.9 * NEW_TOKENS * len(prompts)  # near ties may not hide everything


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_a_cuda_worker_answers_like_the_cpu(arch: str, dtype: str, tmp_path: Path) -> None:
    """The same plain torch code on the other device, with a pinned host tier."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    directory = init_model(tmp_path / "m", arch, "tiny", seed=4)
    generator = np.random.default_rng(5)
    prompts = [generator.integers(0, 256, n).tolist() for n in PROMPTS]
    both = []
    for device in ("cpu", "cuda"):
        worker = Worker(
            directory, page_tokens=PAGE, hbm_pages=64, host_pages=8, dtype=dtype, device=device
        )
        logits = answers_with_logits(worker, prompts)
        both.append([part[0].float().cpu() for part in logits])
        worker.add_row(99, prompts[-1], max_output=2, stop_ids=frozenset())
        worker.run_pass([], [(99, 0, len(prompts[-1]), True)])
        worker.checkpoint([99], [len(prompts[-1])])
        worker.release(99, "hbm")
        worker.restore([99], [len(prompts[-1])])
        assert worker.run_pass([99], []).finished == ((99, "length"),)
    tolerance = 1e-3 if dtype == "float32" else 0.3
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
