"""Chats that become tokens in other processes: the tokens of this one, and a template that runs
away costs its own row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import batchgen.job.rows
from batchgen.exec.init import init_model
from batchgen.exec.tokenizer import Tokenizer
from batchgen.job.encoding import Maker
from batchgen.job.rows import BadRow, JobRow, RowLimits, read_rows

SOMETIMES = """{%- set what = messages[0].content -%}
{%- if what == 'time' %}{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}
{%- endfor %}{% elif what == 'memory' %}{{ what * 10**10 }}
{%- elif what == 'refuse' %}{{ raise_exception('refused') }}
{%- else %}[{{ what }} {{ strftime_now('%H:%M:%S.%f') }}]{% endif %}"""
WRONG = {"time": "needs more than 2 s", "memory": "MiB of memory", "refuse": "refused"}


def refuse(self: Maker, chunk: object) -> None:
    raise AssertionError("a chunk was made here")


def write(path: Path, contents: list[str]) -> Path:
    rows = [{"messages": [{"role": "user", "content": content}]} for content in contents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_row_has_its_own_end_in_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = init_model(tmp_path / "tiny")
    (model / "chat_template.jinja").write_text(SOMETIMES)
    contents = [f"row {n} \u00e9" for n in range(60)]
    contents[5] = contents[40] = "refuse"
    contents[33] = "memory"
    path = write(tmp_path / "in.jsonl", contents)
    tokenizer = Tokenizer(model)
    limits = RowLimits(max_context=4096)
    try:
        want = list(read_rows(path, tokenizer, limits))
    finally:
        tokenizer.release()
    contents[17] = "time"  # which takes it: once is enough
    write(path, contents)
    monkeypatch.setattr(batchgen.job.rows, "BATCH_ROWS", 7)
    monkeypatch.setattr(Maker, "encoded", refuse)
    found = list(read_rows(path, tokenizer, limits, threads=2, here_rows=0))
    assert found[:17] + found[18:] == want[:17] + want[18:]
    for content, row in zip(contents, found, strict=True):
        if content in WRONG:
            assert isinstance(row, BadRow)
            assert (row.code, WRONG[content] in row.message) == ("invalid_messages", True)
        else:
            assert isinstance(row, JobRow)
            assert tokenizer.written(row.prompt_ids).startswith(f"[{content} ")


def test_a_process_needs_no_torch_for_its_tokenizer(tmp_path: Path) -> None:
    model = init_model(tmp_path / "tiny")
    tokenizer = Tokenizer(model)
    name, recipe = tokenizer.recipe()
    tokenizer.release()
    code = (
        "import sys\n"
        "from batchgen.exec.tokenizer import Tokenizer\n"
        "made = Tokenizer.made(*sys.argv[1:])\n"
        "made.release()\n"
        "print('torch' in sys.modules, made.vocab_size, *sorted(made.eos_token_ids))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, *recipe], capture_output=True, text=True, check=True
    )
    facts = (tokenizer.vocab_size, *sorted(tokenizer.eos_token_ids))
    assert name.endswith(":Tokenizer")
    assert said.stdout.split() == ["False", *map(str, facts)]
