"""`batchgen serve`: files and batches of OpenAI's API on this machine, for clients that exist."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from batchgen.cli.common import parse_overrides, say
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
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import Unfinished, UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

DRAIN_S = 30.0
"""For the pass that runs when a signal comes; a model that loads is not waited for."""
INTERRUPTED = 3


@app.command(name="serve")
def serve(
    model: Annotated[
        Path,
        typer.Option(help="Hugging Face folder with safetensors, or org/name of a downloaded one."),
    ],
    state: Annotated[
        Path, typer.Option(help="Folder for files and batches; a server that restarts goes on.")
    ],
    host: Annotated[str, typer.Option(help="Address; others than this machine's need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="BATCHGEN_API_KEY",
            show_envvar=True,
            help="What clients must know; in the environment others do not see it.",
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name in requests; may be repeated. Default: the folder's name."),
    ] = None,
    policy: Policy = "batchgen",
    overrides: Overrides = None,
    dtype: Dtype = None,
    exact: Exact = False,
    device: Device = "cpu",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Output budget of requests that name none, in tokens.")
    ] = 256,
    temperature: Temperature = None,
    seed: Seed = 0,
    hbm_pages: HbmPages = None,
    host_pages: HostPages = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: torch's.")
    ] = None,
    slice_s: Annotated[
        float,
        typer.Option(
            "--slice",
            min=0,
            max=86400,
            help="Seconds of a batch's turn while others wait; 0: to its end.",
        ),
    ] = 300.0,
    max_batches: Annotated[
        int, typer.Option(min=1, max=100_000, help="Unfinished batches; more are told to wait.")
    ] = 64,
    max_requests: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Requests of one file.")
    ] = 50_000,
    max_file_mb: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Size of one file, in MB.")
    ] = 200,
    max_stored_gb: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Size of all files together, in GB.")
    ] = 50,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="A line on stderr for each request.")
    ] = False,
) -> int:
    """Serve batches to the openai package and others, on this machine, until a signal."""
    import python_multipart  # noqa: F401  # starlette asks for it when the first file comes

    from batchgen.serve.app import Service
    from batchgen.serve.clerk import Clerk
    from batchgen.serve.engine import Engine
    from batchgen.serve.guard import Guard
    from batchgen.serve.limits import Limits
    from batchgen.serve.listen import ended_by_signals, is_local, listening, make_server
    from batchgen.serve.store import open_store
    from batchgen.serve.turns import Turns

    key = _key(api_key)
    if not is_local(host) and not key:
        raise UserError(
            f"--host {host} lets others in and there is no key",
            remedy="set BATCHGEN_API_KEY, or give --host 127.0.0.1",
        )
    names = _names(served_model_name, model)
    calm_threads()
    try:
        from batchgen.exec.devices import usual_dtype
        from batchgen.exec.job import ExecJob
        from batchgen.exec.serving import Batches
    except ModuleNotFoundError as error:
        raise UserError(
            f"batchgen serve needs {error.name}", remedy="pip install 'batchgen[exec,serve]'"
        ) from None
    limits = Limits(
        file_bytes=max_file_mb * 1_000_000,
        rows=max_requests,
        stored_bytes=max_stored_gb * 1_000_000_000,
        unfinished=max_batches,
        slice_s=slice_s,
    )
    job = ExecJob(
        model=model,
        input=state,
        output=state,
        policy=policy,
        overrides=parse_overrides(overrides or ()),
        dtype=dtype or usual_dtype(device),
        exact=exact,
        device=device,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        hbm_pages=hbm_pages,
        host_pages=host_pages,
        threads=threads,
    )
    with open_store(state) as store, listening(host, port) as on:
        for batch in store.unfinished():
            if batch.model is not None and batch.model not in names:
                raise UserError(
                    f"{batch.id} in {state} is for the model '{batch.model}', which is not served",
                    remedy="give it as --served-model-name, or another --state",
                )
        engine = Engine(store, Batches(job, say), Turns(slice_s), lambda: clerk.wake(), say)
        clerk = Clerk(store, engine, limits, names, say)
        service = Service(
            store=store,
            engine=engine,
            clerk=clerk,
            limits=limits,
            models=names,
            began=int(time.time()),
        )
        guard = Guard(
            service.app(), limits=limits, api_key=key, say=say, log=say if verbose else None
        )
        server = make_server(guard)

        def stop() -> None:
            server.should_exit = True
            engine.halt()

        with ended_by_signals(stop):
            engine.start()
            clerk.start()
            shown = f"[{host}]" if ":" in host else host
            say(f"serving {', '.join(names)} on http://{shown}:{on.getsockname()[1]}/v1")
            asyncio.run(server.serve(sockets=[on]))
            clerk.stop(DRAIN_S)
            if not engine.stop(DRAIN_S):
                say("stopped while the engine is at work; the same command goes on")
                os._exit(INTERRUPTED)
        left = store.num_unfinished()
    if left:
        raise Unfinished(
            f"stopped: {left} batches are unfinished, in {state}",
            remedy="the same command goes on with them",
            code="stopped",
        )
    return 0


def _key(given: str | None) -> str:
    if given is None:
        return ""
    if not given or not given.isascii() or not given.isprintable() or " " in given:
        raise UserError("the API key is empty or holds blanks", remedy="give ASCII letters")
    return given


def _names(given: list[str] | None, model: Path) -> tuple[str, ...]:
    """What the model is called in requests."""
    if not given:
        return (str(model) if not model.exists() else model.resolve().name,)
    for name in given:
        if not name or not name.isprintable() or len(name) > 200:
            raise UserError(
                f"--served-model-name {name!r:.60} is no name", remedy="give up to 200 characters"
            )
    return tuple(dict.fromkeys(given))
