"""`batchgen bench tune`: measures tile sizes of the kernels on this GPU and writes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchgen.cli.common import say, tell_result
from batchgen.errors import UserError
from batchgen.oneline import one_line
from batchgen.paths import check_result

if TYPE_CHECKING:
    from batchgen.exec.kernels.tuning import Tune, Tuned

JOBS = 12
# Shapes that are tuned are those that the kernel table measures, and lie beside it in a checkout.
SHAPES = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


def tune(
    only: Annotated[
        str | None, typer.Option(help="Only lines whose kernel or shape holds this text.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON to write; default: what is shipped for this GPU.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that compile before anything is measured.")
    ] = JOBS,
    force: Annotated[bool, typer.Option(help="Replace the JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON.")] = False,
) -> int:
    """Measure tile sizes of the Triton kernels on this GPU; a kernel then uses them where the GPU
    and the version of Triton are the same. Buckets measured before and not now are kept."""
    import torch
    import triton

    from batchgen.exec.kernels import tuning

    if not torch.cuda.is_available():
        raise UserError(
            "this machine has no CUDA device to tune for",
            remedy="without one the kernels' own numbers hold",
        )
    name = torch.cuda.get_device_name()
    path = tuning.default_path(name) if out is None else out
    if out is not None:
        check_result(out, force=force)
    chosen = _chosen(only)
    if not chosen:
        raise UserError(f"--only '{only}' leaves nothing to tune", remedy="leave it out")
    if jobs > 1:
        _compile_beside(only, len(chosen), jobs)
    results: list[Tuned] = []
    failed: list[str] = []
    for one in chosen:
        try:
            results.append(tuning.tune(one, torch.device("cuda")))
            say(_line(one, results[-1]))
        except Exception as error:  # of any kind: a kernel that fails must not cost the others
            failed.append(f"{one.kernel} {one.shape}: {one_line(error)}")
        torch.cuda.empty_cache()
    kernels = tuning.merged(path, tuning.configs_of(results), triton.__version__)
    content = tuning.document(kernels, triton.__version__, tuning.MADE_ON + name, True)
    return tell_result(content, lambda: say(f"wrote {path}"), failed, out=path, as_json=as_json)


def _compile_beside(only: str | None, count: int, jobs: int) -> None:
    """Compile all that will be measured, in processes beside each other: compiling takes longer
    than measuring, and a kernel is measured alone."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    workers = min(jobs, count, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(_compile, only, number) for number in range(count)]:
            done.exception()  # what fails here fails again where it is told


def _compile(only: str | None, number: int) -> None:
    import torch

    from batchgen.exec.kernels import tuning

    tuning.compile_all(_chosen(only)[number], torch.device("cuda"))
    torch.cuda.synchronize()


def _chosen(only: str | None) -> list[Tune]:
    return [one for one in _every() if only is None or only in f"{one.kernel} {one.shape}"]


def _every() -> list[Tune]:
    from batchgen.exec.kernels.ahead import kernel_modules
    from batchgen.exec.kernels.tuning import find_tunes

    modules = kernel_modules()
    if SHAPES.is_dir():
        sys.path.append(str(SHAPES))
        modules += sorted(path.stem for path in SHAPES.glob("shapes_*.py"))
    return find_tunes(modules)


def _line(one: Tune, result: Tuned) -> str:
    return (
        f"{one.kernel} {one.shape}: {result.best_s * 1e6:.1f} us, its own "
        f"{result.seconds[0] * 1e6:.1f} us, {len(result.errors)} of {len(one.changes)} failed"
    )
