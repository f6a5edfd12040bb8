"""Errors in the words of Python: flags that are options there, and no others."""

from __future__ import annotations

import pytest

from batchgen.api import BatchOptions
from batchgen.errors import DataError, UserError
from batchgen.option_names import named_as_options, with_options

OPTIONS = BatchOptions.__annotations__


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("--shard is '3/2'", "shard is '3/2'"),
        ("add --resume always, or remove it", 'add resume="always", or remove it'),
        ("add --set plan.page_tokens=8", "add overrides plan.page_tokens=8"),
        ("--prompt-column and --prompt-template", "prompt_column and prompt_template"),
        ("give --job-dir", "give folder"),
        ("add --progress off", "add --progress off"),  # no option of Python
        ("a--shard, ---shard and --shard-", "a--shard, ---shard and --shard-"),
        ("", ""),
    ],
)
def test_flags_become_options(said: str, meant: str) -> None:
    assert with_options(said, OPTIONS) == meant
    assert with_options(meant, OPTIONS) == meant


def test_an_error_keeps_its_kind_and_code() -> None:
    with pytest.raises(DataError) as caught, named_as_options(OPTIONS):
        raise DataError("bad", path="a", line=3, remedy="add --force", code="odd")
    error = caught.value
    assert (error.line, error.code, error.remedy) == (3, "odd", "add force")
    assert str(error) == "a:3: bad; add force"
    with pytest.raises(UserError) as bare, named_as_options(OPTIONS):
        raise UserError("--strict refuses it")
    assert str(bare.value) == "strict refuses it"
