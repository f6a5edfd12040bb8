"""Exact mode: logits are bitwise the same in every batch, chunking, page size, after a restore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import FAMILIES, Passes, write_model

from batchgen.errors import UserError
from batchgen.exec.compiled import is_compiled
from batchgen.exec.exact import (
    ROW_MULTIPLE,
    check_products,
    exact_linear,
    exact_sigmoid,
    exact_silu,
)
from batchgen.exec.init import init_model
from batchgen.exec.transformer import Transformer, load_model
from batchgen.exec.worker import Worker

SHAPES = [(64, 128), (64, 264), (64, 8), (32, 64), (256, 16), (100, 76), (512, 512)]


@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_a_row_of_a_product_does_not_depend_on_the_batch(inner: int, outer: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(320, inner, generator=generator)
    weight, bias = torch.randn(outer, inner, generator=generator), torch.randn(outer)
    whole = exact_linear(x, weight, bias)
    for rows in range(1, 301):
        begin = rows % 20
        part = exact_linear(x[begin : begin + rows], weight, bias)
        assert torch.equal(part, whole[begin : begin + rows]), rows
    torch.testing.assert_close(whole, functional.linear(x, weight, bias), atol=1e-4, rtol=1e-4)


def test_elementwise_operations_do_not_depend_on_the_place_in_the_vector() -> None:
    x = torch.randn(40_001, generator=torch.Generator().manual_seed(0)) * 3
    operations = {
        "exp": torch.exp,
        "silu": exact_silu,
        "sigmoid": exact_sigmoid,
        "rsqrt": lambda t: torch.rsqrt(t.square() + 1e-6),
        "divide": lambda t: 1.3 / t,
    }
    for name, operation in operations.items():
        whole = operation(x)
        for length in (1, 2, 3, 7, 15, 16, 17, 31, 33, 1000, 20_001):
            for begin in (0, 1, 3, 500):
                part = operation(x[begin : begin + length].clone())
                assert torch.equal(part, whole[begin : begin + length]), (name, length, begin)
    torch.testing.assert_close(exact_silu(x), functional.silu(x))
    assert exact_silu(torch.tensor([-200.0, 200.0])).tolist() == [0.0, 200.0]


@pytest.mark.parametrize("width", [8, 16, 64, 100, 264])
def test_reductions_over_a_row_do_not_depend_on_the_number_of_rows(width: int) -> None:
    x = torch.randn(200, width, generator=torch.Generator().manual_seed(0))
    means, softmax = x.square().mean(-1), torch.softmax(x, -1)
    for rows in range(1, 130):
        part = x[7 : 7 + rows].clone()
        assert torch.equal(part.square().mean(-1), means[7 : 7 + rows])
        assert torch.equal(torch.softmax(part, -1), softmax[7 : 7 + rows])


def test_a_library_that_breaks_the_promise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_products([torch.randn(24, 48), torch.randn(8, 64)])
    right = functional.linear

    def wrong(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return right(x, weight) * (1 + 1e-6 * (len(x) == ROW_MULTIPLE))

    monkeypatch.setattr(functional, "linear", wrong)
    with pytest.raises(UserError, match="depends on the batch"):
        check_products([torch.randn(24, 48)])


@pytest.fixture(scope="module", params=["compiled", "torch"], autouse=True)
def attention(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every promise of this file holds with the compiled attention and with that in torch."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setenv("BATCHGEN_COMPILED", "0")
        elif not is_compiled(torch.float32):
            pytest.skip("no C++ compiler here")
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: str = request.param
    return init_model(tmp_path_factory.mktemp(family) / "m", family, "tiny", seed=1)


@pytest.fixture(scope="module")
def model(directory: Path) -> Transformer:
    return load_model(directory, dtype="float32", exact=True)


def random_rows(count: int, longest: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, 256, int(n)).tolist() for n in generator.integers(1, longest, count)
    ]


def test_decoding_is_bitwise_the_same_in_batches_of_1_to_64(model: Transformer) -> None:
    rows = random_rows(64, 150)
    passes = Passes(model, 16, tokens=64 * 150)
    prompts = [(i, 0, len(r)) for i, r in enumerate(rows)]
    whole = passes.run(rows, [], prompts)
    last = [(i, len(r) - 1, 1) for i, r in enumerate(rows)]
    # The last token once more as a decode: the same KV is written, the same logits must come out.
    for size in range(1, 65):
        begin = (size * 7) % (65 - size)
        for (slot, _, _), logits in zip(
            last[begin : begin + size],
            passes.run(rows, last[begin : begin + size], []),
            strict=True,
        ):
            assert torch.equal(logits[0], whole[slot][-1]), (size, slot)


@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_chunking_and_company_change_no_bit(model: Transformer, data: st.DataObject) -> None:
    rows = random_rows(6, 200)
    whole = [Passes(model, 64).run([r], [], [(0, 0, len(r))])[0] for r in rows]
    passes = Passes(model, data.draw(st.sampled_from([1, 8, 16, 24, 64, 128])))
    done = [0] * len(rows)
    while any(n < len(r) for n, r in zip(done, rows, strict=True)):
        decodes, chunks = [], []
        for slot, row in enumerate(rows):
            left = len(row) - done[slot]
            if not left or data.draw(st.booleans()):
                continue
            length = data.draw(st.one_of(st.just(1), st.just(left), st.integers(1, left)))
            alone = length == 1 and data.draw(st.booleans())
            (decodes if alone else chunks).append((slot, done[slot], length))
        if not decodes and not chunks:
            continue
        for (slot, start, length), logits in zip(
            [*decodes, *chunks], passes.run(rows, decodes, chunks), strict=True
        ):
            assert torch.equal(logits, whole[slot][start : start + length])
            done[slot] = start + length


def test_a_restored_row_continues_with_the_same_bits(directory: Path) -> None:
    """KV that went to the host and back, to other pages, in the middle of a block."""
    ids = random_rows(1, 150)[0] + [1] * 40
    answers = []
    for disturbed in (False, True):
        worker = Worker(directory, page_tokens=16, hbm_pages=64, host_pages=32, exact=True)
        worker.add_row(0, ids, max_output=8, stop_ids=frozenset())
        worker.run_pass([], [(0, 0, len(ids), True)])
        if disturbed:
            worker.checkpoint([0], [len(ids)])
            worker.release(0, "hbm")
            worker.add_row(1, ids[:33], max_output=8, stop_ids=frozenset())
            worker.run_pass([], [(1, 0, 33, True)])
            worker.restore([0], [len(ids)])
        captured = []
        forward = worker.model.forward

        def keep(
            *arguments: object, real: object = forward, into: list[object] = captured
        ) -> object:
            into.append(real(*arguments))  # type: ignore[operator]
            return into[-1]

        worker.model.forward = keep  # type: ignore[method-assign, assignment]
        while not worker.run_pass([0], []).finished:
            pass
        answers.append((worker.tokens(0), captured))
    assert answers[0][0] == answers[1][0]
    for a, b in zip(answers[0][1], answers[1][1], strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("llama", {"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 80}),
        ("mistral", {"sliding_window": 70, "num_attention_heads": 5, "num_key_value_heads": 5}),
        ("deepseek-v3", {"num_attention_heads": 40, "num_key_value_heads": 40}),
        ("gpt-oss", {"num_attention_heads": 12, "num_key_value_heads": 2, "sliding_window": 3}),
    ],
)
def test_awkward_shapes_keep_the_promise_too(
    arch: str, changes: dict[str, int], tmp_path: Path
) -> None:
    model = load_model(write_model(tmp_path / "m", arch, **changes), dtype="float32", exact=True)
    rows = random_rows(5, 150)
    whole = Passes(model, 16).run(rows, [], [(i, 0, len(row)) for i, row in enumerate(rows)])
    passes = Passes(model, 24)
    for slot, row in enumerate(rows):
        for start in range(0, len(row), 11):
            length = min(11, len(row) - start)
            (part,) = passes.run(rows, [], [(slot, start, length)])
            assert torch.equal(part, whole[slot][start : start + length])


def test_exact_mode_refuses_short_floats(directory: Path) -> None:
    with pytest.raises(UserError, match="exact mode runs in float32"):
        Worker(directory, page_tokens=16, hbm_pages=4, host_pages=0, dtype="bfloat16", exact=True)
