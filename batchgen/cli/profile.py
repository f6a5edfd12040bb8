"""`batchgen profile`: measure this machine into a JSON file. Parses and writes; exec measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import UserError
from batchgen.paths import beside, check_new_output, put

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("profile")
def profile_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="PATH", help="Profile to write (JSON).")
    ],
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure with the shapes of this checkpoint."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Rows like those to come; default: random tokens."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter points.")] = False,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="What is measured.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16 [default: float32 on the CPU, bfloat16 on a GPU]."
        ),
    ] = None,
    page_tokens: Annotated[int, typer.Option(min=1, help="Tokens per KV page.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch threads [default: torch's own].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile too.")] = False,
) -> None:
    """Measure products, attention, copies and overheads of this machine, or of its GPU.

    The profile answers 'batchgen sim --profile' for runs on this machine; a profile of a --model
    fits that model exactly. Keep the machine idle meanwhile.
    """
    from batchgen.cli.common import say

    _check_output(output, force)
    calm_threads()
    from batchgen.exec.devices import check_device
    from batchgen.exec.profile import measure
    from batchgen.exec.profile_grid import grid_of

    check_device(device)
    document = measure(
        model,
        prompts=prompts,
        grid=grid_of(device, quick=quick),
        device=device,
        dtype=dtype,
        page_tokens=page_tokens,
        threads=threads,
        say=say,
    )
    _write(output, document)
    say(f"wrote {output}")
    if as_json:
        print(json.dumps(document, indent=2, allow_nan=False))


def _check_output(output: Path, force: bool) -> None:
    """Refuse before measuring, not after."""
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"cannot write {output}", remedy="name a file in an existing folder")
    check_new_output(output, force=force)


def _write(output: Path, document: dict[str, Any]) -> None:
    """Write beside the target and rename, so that no reader sees half a profile."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    try:
        with beside(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
            put(temporary, output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}", remedy="check it") from None
