"""`batchgen bench tune`: measures tile sizes of the kernels on this GPU and writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import say, tell_result
from batchgen.errors import UserError
from batchgen.paths import check_result, kind_of

if TYPE_CHECKING:
    from batchgen.exec.kernels.tuning import Tune, Tuned


def tune(
    only: Annotated[
        str | None, typer.Option(help="Only buckets whose kernel or name holds this text.")
    ] = None,
    defaults: Annotated[
        Path | None,
        typer.Option(
            help="Write the kernels' own numbers into this folder instead, measuring nothing; "
            "needs no GPU."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON to write; default: what is shipped for this GPU.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace the JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Measure tile sizes of the Triton kernels on this GPU; a kernel then uses them where the GPU
    and the version of Triton are the same."""
    import torch
    import triton

    from batchgen.exec.kernels import tuning
    from batchgen.exec.kernels.ahead import kernel_modules

    if defaults is not None:
        if kind_of(defaults) != "folder":
            raise UserError(f"--defaults {defaults} is no folder", remedy="make it first")
        tunes = tuning.find_tunes(kernel_modules())
        for path in tuning.write_defaults(defaults, tunes, triton.__version__):
            say(f"wrote {path}")
        return 0
    if not torch.cuda.is_available():
        raise UserError(
            "this machine has no CUDA device to tune for",
            remedy="run it on one, or write the kernels' own numbers by --defaults DIR",
        )
    name = torch.cuda.get_device_name()
    path = tuning.default_path(name) if out is None else out
    if out is not None:
        check_result(out, force=force)
    every = tuning.find_tunes(kernel_modules())
    tunes = [one for one in every if only is None or only in f"{one.kernel} {one.bucket}"]
    if not tunes:
        raise UserError(f"--only '{only}' leaves no bucket", remedy="leave it out to tune all")
    results = []
    for result in tuning.tune(tunes, torch.device("cuda")):
        results.append(result)
        say(_line(tunes[len(results) - 1], result))
    kernels = tuning.chosen(tunes, results)
    if only is not None:
        kernels = tuning.merged(path, kernels, triton.__version__)
    content = tuning.document(kernels, triton.__version__, tuning.MADE_ON + name, True)
    return tell_result(content, lambda: _wrote(path, content), [], out=path, as_json=as_json)


def _line(one: Tune, result: Tuned) -> str:
    own, best = result.seconds[0], result.seconds[result.chosen]
    return (
        f"{one.kernel} {one.bucket}: {best * 1e6:.1f} us, the kernel's own {own * 1e6:.1f} us, "
        f"{len(one.candidates)} tried, {len(result.errors)} failed"
    )


def _wrote(path: Path, content: dict[str, Any]) -> None:
    say(f"{sum(len(buckets) for buckets in content['kernels'].values())} buckets in {path}")
