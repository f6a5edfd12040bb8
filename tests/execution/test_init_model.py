"""Random checkpoints: reproducible, any text encodes, answers end by themselves at many lengths."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import transformers

from batchgen.cli import model as model_command
from batchgen.errors import DataError, UserError
from batchgen.exec.config import load_config
from batchgen.exec.init import ARCHITECTURES, init_model
from batchgen.exec.tokenizer import TemplateError, Tokenizer
from batchgen.exec.weights import expected_shapes
from batchgen.exec.worker import Worker
from batchgen.model import load_model


def test_the_help_names_all_families() -> None:
    assert sorted(model_command.ARCHITECTURES) == sorted(ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_answers_vary_and_many_end_early(arch: str, tmp_path: Path) -> None:
    model = init_model(tmp_path / "m", arch, "tiny", seed=0)
    tokenizer = Tokenizer(model)
    worker = Worker(model, page_tokens=16, hbm_pages=600, host_pages=0)
    count, limit = 48, 96
    for row in range(count):
        ids = tokenizer.encode(f"Question {row}: " + "xyz" * (row % 7))
        worker.add_row(row, ids, max_output=limit, stop_ids=tokenizer.eos_token_ids)
    chunks = [
        (r, 0, len(tokenizer.encode(f"Question {r}: " + "xyz" * (r % 7))), True)
        for r in range(count)
    ]
    result = worker.run_pass([], chunks)
    reasons = dict(result.finished)
    while len(reasons) < count:
        result = worker.run_pass([r for r in range(count) if r not in reasons], [])
        reasons |= dict(result.finished)
    lengths = [len(worker.tokens(row)) for row in range(count)]
    early = [n for n in lengths if n <= 64 and n < limit]
    assert len(early) >= count // 5
    assert len(set(lengths)) >= 12
    # Answers of one or two tokens may coincide; those that go on depend on the whole prompt.
    assert len({tuple(worker.tokens(row)) for row in range(count)}) >= count - 6
    assert sum(len(set(worker.tokens(row))) for row in range(count)) >= 0.4 * sum(lengths)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_catalog_counts_the_same_parameters(arch: str, tmp_path: Path) -> None:
    """Two readers of the same config.json: the executor's and that of the simulator."""
    model = init_model(tmp_path / "m", arch, "tiny")
    shapes = expected_shapes(load_config(model))
    assert sum(map(math.prod, shapes.values())) == load_model(model).total_parameters


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    one = init_model(tmp_path / "a", "llama", "tiny", seed=4)
    two = init_model(tmp_path / "b", "llama", "tiny", seed=4)
    other = init_model(tmp_path / "c", "llama", "tiny", seed=5)
    assert [p.name for p in sorted(one.iterdir())] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    weights = "model.safetensors"
    assert (one / weights).read_bytes() != (other / weights).read_bytes()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="not an empty folder"):
        init_model(tmp_path)
    with pytest.raises(UserError, match="unknown arch"):
        init_model(tmp_path / "m", "gpt2")
    with pytest.raises(UserError, match="unknown size"):
        init_model(tmp_path / "m", "llama", "huge")
    assert not (tmp_path / "m").exists()


def test_any_text_encodes_and_comes_back(tmp_path: Path) -> None:
    tokenizer = Tokenizer(init_model(tmp_path / "m"))
    for text in ("plain", "  two  spaces\n\ttab ", "Grüße, 世界 🎉", "\x00\x7f\u2028", ""):
        ids = tokenizer.encode(text)
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([104, 105, *tokenizer.eos_token_ids, 263]) == "hi"


def test_padding_and_truncation_of_the_file_are_for_training(tmp_path: Path) -> None:
    model = init_model(tmp_path / "m")
    texts = ["a", "some words", "x" * 300]
    want = Tokenizer(model).encode_texts(texts)
    settings = json.loads((model / "tokenizer.json").read_text())
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    settings["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Left",
        "pad_to_multiple_of": 8,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    (model / "tokenizer.json").write_text(json.dumps(settings))
    assert Tokenizer(model).encode_texts(texts) == want
    assert [Tokenizer(model).encode(text) for text in texts] == want


def test_the_chat_template_agrees_with_transformers(tmp_path: Path) -> None:
    model = init_model(tmp_path / "m")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é?"}]
    oracle = transformers.AutoTokenizer.from_pretrained(model)
    expected = oracle.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert Tokenizer(model).encode_messages(messages) == expected


def test_templates_are_sandboxed_and_their_errors_are_the_rows(tmp_path: Path) -> None:
    model = init_model(tmp_path / "m")
    for evil in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ):
        (model / "chat_template.jinja").write_text(evil)
        with pytest.raises(TemplateError):
            Tokenizer(model).encode_messages([{"role": "user", "content": "x"}])
    (model / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(DataError, match="chat_template"):
        Tokenizer(model)


def test_a_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    model = init_model(tmp_path / "m")
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Tokenizer(model)
