"""The flags of `batchgen serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.engine_options import (
    Device,
    Dtype,
    Exact,
    HbmPages,
    HostPages,
    Overrides,
    Policy,
    Seed,
    Temperature,
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)  # an API key is never printed
class ServeFlags:
    """As typer has read them: types and given ranges hold, nothing else is checked."""

    model: Annotated[
        Path,
        typer.Option(help="Hugging Face folder with safetensors, or org/name of a downloaded one."),
    ]
    state: Annotated[
        Path, typer.Option(help="Folder for files and batches; a server that restarts goes on.")
    ]
    host: Annotated[str, typer.Option(help="Address; others than this machine's need a key.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="BATCHGEN_API_KEY",
            show_envvar=True,
            help="What clients must know; in the environment others do not see it.",
        ),
    ] = None
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name in requests; may be repeated. Default: the folder's name."),
    ] = None
    policy: Policy = "batchgen"
    overrides: Overrides = None
    dtype: Dtype = None
    exact: Exact = False
    device: Device = "cpu"
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Output budget of requests that name none, in tokens.")
    ] = 256
    temperature: Temperature = None
    seed: Seed = 0
    hbm_pages: HbmPages = None
    host_pages: HostPages = None
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's.")] = (
        None
    )
    slice_s: Annotated[
        float,
        typer.Option(
            "--slice",
            min=0,
            max=86400,
            help="Seconds of a batch's turn while others wait; 0: to its end.",
        ),
    ] = 300.0
    max_batches: Annotated[
        int, typer.Option(min=1, max=100_000, help="Unfinished batches; more are told to wait.")
    ] = 64
    max_requests: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Requests of one file.")
    ] = 50_000
    max_file_mb: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Size of one file, in MB.")
    ] = 200
    max_stored_gb: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Size of all files together, in GB.")
    ] = 50
    verbose: Annotated[
        bool, typer.Option("--verbose", help="A line on stderr for each request.")
    ] = False
