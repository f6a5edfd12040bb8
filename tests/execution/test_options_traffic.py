"""Generation options under random traffic: what the runtime does to a row changes nothing, and the
row is what its definition over whole token lists says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import IllegalTransition
from batchgen.exec.adjust import adjust
from batchgen.exec.init import init_model
from batchgen.exec.rows import RowInput, Rows
from batchgen.exec.stops import StopWatch, cut_text, said
from batchgen.exec.tokenizer import Tokenizer
from batchgen.exec.worker import Worker
from batchgen.job.sampling import Sampling

PAGE = 8
NEVER: frozenset[int] = frozenset()
VOCAB = 264


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("models") / "m", "qwen3", "tiny", seed=1)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer(model)


# -- penalties, bias, no end yet ------------------------------------------------------------------


def changed(
    logits: np.ndarray[Any, Any],
    one: Sampling,
    given_ids: list[int],
    produced: list[int],
    stops: frozenset[int],
    stage_produced: int,
) -> np.ndarray[Any, Any]:
    """The oracle, from the whole history."""
    row = logits.astype(np.float64)
    for token, bias in one.logit_bias:
        row[token] += bias
    for token in {*given_ids, *produced}:
        row[token] *= 1 / one.repetition_penalty if row[token] > 0 else one.repetition_penalty
    for token in set(produced):
        row[token] -= one.presence_penalty + one.frequency_penalty * produced.count(token)
    if stage_produced < one.min_tokens:
        row[list(stops)] = -np.inf
    return row


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Sampling,
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
        presence_penalty=st.sampled_from([0.0, -1.0, 2.0]),
        frequency_penalty=st.sampled_from([0.0, -0.5, 0.7]),
        min_tokens=st.integers(0, 9),
        logit_bias=st.sampled_from([(), ((3, 5.0), (4, -100.0))]),
    ),
    st.lists(st.integers(0, 11), min_size=1, max_size=9),
    st.lists(
        st.one_of(st.integers(0, 11), st.lists(st.integers(0, 11), min_size=1, max_size=4)),
        max_size=20,
    ),
    st.integers(1, 7),
    st.integers(0, 1 << 20),
)
def test_logits_change_by_the_whole_history(
    one: Sampling, prompt: list[int], history: list[int | list[int]], every: int, seed: int
) -> None:
    """Looked at after every few tokens (a row is not adjusted in each pass that it is in), over
    produced tokens and follow-ups (lists)."""
    rows, stops = Rows(12), frozenset({5, 11})
    rows.add(0, RowInput(prompt_ids=prompt, max_output=99, stop_ids=stops, sampling=one))
    given_ids, produced, began = list(prompt), [], 0
    generator = np.random.default_rng(seed)
    slots = np.array([0])
    for step, what in enumerate([*history, 0]):
        if isinstance(what, list):
            if produced:
                rows.extend(0, what, len(what), 99)
                given_ids += what
                began = len(produced)
        else:
            rows.append(slots, np.array([what]))
            produced.append(what)
        if step % every == 0 and produced:
            logits = generator.standard_normal((3, 12), dtype=np.float32) * 3
            tensor = torch.from_numpy(logits.copy())
            adjust(tensor, np.array([1]), slots, rows)
            expected = changed(logits[1], one, given_ids, produced, stops, len(produced) - began)
            np.testing.assert_allclose(tensor[1].numpy(), expected, rtol=1e-5, atol=1e-5)
            assert np.array_equal(tensor[::2].numpy(), logits[::2])


# -- stop texts -----------------------------------------------------------------------------------

BYTES = st.sampled_from([*b"ab \n", *"\u00e9\u20ac\U0001f642".encode(), 0x80, 0xFF, 258, 260, 263])


TEXTS = st.text(alphabet="ab \u00e9\u20ac\U0001f642", min_size=1, max_size=12)
NOISE = st.lists(BYTES, max_size=5)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, noise=st.tuples(NOISE, NOISE), least=st.integers(0, 12), data=st.data())
def test_a_stop_text_ends_a_row_with_its_first_token_that_completes_one(
    tokenizer: Tokenizer, text: str, noise: tuple[list[int], list[int]], least: int, data: Any
) -> None:
    """Stops are pieces of the text, which is a token per byte, between tokens that may be half
    characters. Two stages: the second begins as if there were no first."""
    second = [*noise[0], *text.encode(), *noise[1]]
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    stops = [text[begin:end]]
    watch = StopWatch(stops, tokenizer.decode, least)
    for stage, tokens in ((0, [*b"a ba b", *second]), (50, second)):
        for count in range(1, len(tokens) + 1):
            some = tokens[:count]
            cut = cut_text(tokenizer.decode, some, stops, least) if count >= least else None
            assert watch.hit(stage, np.array(some, dtype=np.int32)) == (cut is not None)
            if cut is not None:
                found, parts = said(
                    tokenizer.decode,
                    some,
                    ended_by_stop=True,
                    ending=frozenset({258}),
                    stops=stops,
                    min_tokens=least,
                )
                assert found == cut
                assert tokenizer.decode(some).startswith(found)
                assert len(tokenizer.decode(some[:parts])) >= len(found)
                assert least > 1 or not any(stop in found for stop in stops)
                break
        else:
            assert least > 1  # without that, the stop is in the text


# -- whole rows -----------------------------------------------------------------------------------

OPTIONS = [
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, seed=5, logprobs=2),
    Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4),
    Sampling(temperature=1.2, frequency_penalty=1.0, min_tokens=6, seed=1, logprobs=0),
    Sampling(logit_bias=((65, 100.0), (66, 99.9)), frequency_penalty=0.3),
    Sampling(min_tokens=4, logprobs=20),
    Sampling(),
]
STOP_TEXTS = [(), ("e", "A"), (), (), ("AB",), ("\x7f", "~", "0"), ("e",)]
STOPS = frozenset(range(240, 264))


def make(model: Path, tokenizer: Tokenizer, inputs: list[RowInput]) -> Worker:
    worker = Worker(model, page_tokens=PAGE, hbm_pages=96, host_pages=96, exact=True)
    worker.feed(inputs.__getitem__, tokenizer.decode)
    return worker


def row_inputs(seed: int) -> list[RowInput]:
    generator = np.random.default_rng(seed)
    return [
        RowInput(
            prompt_ids=generator.integers(0, 256, int(generator.integers(1, 40))).tolist(),
            max_output=int(generator.integers(8, 30)),
            stop_ids=STOPS,
            sampling=one,
            stop=stop,
        )
        for one, stop in zip(OPTIONS, STOP_TEXTS, strict=True)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_traffic_changes_no_answer(model: Path, tokenizer: Tokenizer, seed: int) -> None:
    """Rows of different options are chunked, suspended, restored and recomputed together; each has
    the tokens, the end and the log probabilities that it has alone, to the last bit."""
    inputs = row_inputs(seed)
    expected = []
    reasons = {}
    for row, one in enumerate(inputs):
        w = make(model, tokenizer, inputs)
        result = w.run_pass([], [(row, 0, len(one.prompt_ids), True)])
        while not result.finished:
            result = w.run_pass([row], [])
        expected.append(w.stages(row))
        reasons |= dict(result.finished)
    w = make(model, tokenizer, inputs)
    generator = np.random.default_rng(seed)
    done: dict[int, str] = {}
    while len(done) < len(inputs):
        decodes, chunks = [], []
        for row, one in enumerate(inputs):
            if row in done or generator.random() < 0.2:
                continue
            w.rows.slot(row)
            known, computed = len(one.prompt_ids) + len(w.tokens(row)), w.computed_tokens(row)
            if generator.random() < 0.2 and computed:
                w.checkpoint([row], [computed])
            if generator.random() < 0.2:
                w.release(row, "hbm")
                have = int(w.rows.on_host[w.rows.slot(row)])
                if generator.random() < 0.5 and have:
                    w.restore([row], [have])
                computed = w.computed_tokens(row)
            if computed == known - 1 and w.tokens(row):
                decodes.append(row)
            else:
                length = int(generator.integers(1, known - computed + 1))
                chunks.append((row, computed, length, computed + length == known))
        if decodes or chunks:
            done |= dict(w.run_pass(decodes, chunks).finished)
    assert [w.stages(row) for row in range(len(inputs))] == expected
    assert done == reasons
    for row, one in enumerate(inputs):
        (stage,) = expected[row]
        least = 0 if one.sampling is None else one.sampling.min_tokens
        assert len(stage.produced) >= least
        assert not any(token in STOPS for token in stage.produced[:least])
        if stage.logprobs is not None:
            assert len(stage.logprobs) == len(stage.produced)
            assert {len(x.best) for x in stage.logprobs} == {one.sampling.logprobs}
    for row in range(len(inputs)):
        w.forget_row(row)
    assert not w.rows.options.state
    assert w.pages_used("hbm") == w.pages_used("host") == 0


def test_a_slot_forgets_the_options_of_the_row_before(model: Path, tokenizer: Tokenizer) -> None:
    plain = RowInput(prompt_ids=[1, 2, 3], max_output=9, stop_ids=NEVER)
    for one in row_inputs(4):
        w = make(model, tokenizer, [one, plain])
        w.run_pass([], [(0, 0, len(one.prompt_ids), True)])
        w.forget_row(0)
        result = w.run_pass([], [(1, 0, 3, True)])
        while not result.finished:
            result = w.run_pass([1], [])
        assert w.stages(1)[0].logprobs is None
        fresh = make(model, tokenizer, [plain])
        result = fresh.run_pass([], [(0, 0, 3, True)])
        while not result.finished:
            result = fresh.run_pass([0], [])
        assert w.tokens(1) == fresh.tokens(0)


def test_stop_texts_need_a_tokenizer(model: Path) -> None:
    w = Worker(model, page_tokens=PAGE, hbm_pages=4, host_pages=0)
    w.feed([RowInput(prompt_ids=[1], max_output=2, stop_ids=NEVER, stop=("a",))].__getitem__)
    with pytest.raises(IllegalTransition, match="no tokenizer"):
        w.run_pass([], [(0, 0, 1, True)])
