"""Options that say how an engine runs rows, the same for `exec` and `serve`."""

from __future__ import annotations

from typing import Annotated

import typer

Policy = Annotated[str, typer.Option(help="Preset to run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PART.OPTION=VALUE", help="Change one option; may be repeated."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16 [default: float32 on the CPU, bfloat16 on a GPU]."
    ),
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="The same tokens under every policy and batch; float32, cpu."),
]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the model runs.")]
Temperature = Annotated[
    float | None,
    typer.Option(help="Of rows that name none, 0 is greedy; default: the model's, else 1."),
]
Seed = Annotated[int, typer.Option(help="Seed of sampled rows.")]
HbmPages = Annotated[
    int | None, typer.Option(help="KV pages of the device; default: what the rows can need.")
]
HostPages = Annotated[int | None, typer.Option(help="KV pages of the host tier.")]
