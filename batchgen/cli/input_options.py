"""Options that say what a file of rows is, the same for every command that reads one."""

from __future__ import annotations

from typing import Annotated

import typer

InputFormat = Annotated[
    str,
    typer.Option(
        metavar="auto|jsonl|csv|parquet|text", help="Form of the input; gzip of any is read."
    ),
]
PromptColumn = Annotated[
    str | None, typer.Option(help="The column or field that holds the prompt.")
]
PromptTemplate = Annotated[
    str | None, typer.Option(help="A prompt made of columns, for instance 'Q: {question}'.")
]
Chat = Annotated[
    bool, typer.Option("--chat", help="Prompts from columns go through the chat template.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fields that are not known make error rows.")
]
