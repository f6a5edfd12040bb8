"""`batchgen serve`: files and batches of OpenAI's API on this machine, for clients that exist."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from batchgen.cli.asked import extra_needed, of_engine
from batchgen.cli.common import say
from batchgen.cli.options import command
from batchgen.cli.serve_flags import ServeFlags
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import Unfinished, UserError

if TYPE_CHECKING:
    import socket

    from batchgen.exec.serving import Batches
    from batchgen.serve.limits import Limits
    from batchgen.serve.store import Store

app = typer.Typer(add_completion=False, rich_markup_mode=None)

DRAIN_S = 30.0
"""For the pass that runs when a signal comes; a model that loads is not waited for."""
INTERRUPTED = 3


@command(app, ServeFlags)
def serve(asked: ServeFlags) -> int:
    """Serve batches to the openai package and others, on this machine, until a signal."""
    import python_multipart  # noqa: F401  # starlette asks for it when the first file comes
    import starlette  # noqa: F401  # what is not installed is told before torch loads

    from batchgen.serve.listen import is_local, listening
    from batchgen.serve.store import open_store

    key = _key(asked.api_key)
    if not is_local(asked.host) and not key:
        raise UserError(
            f"--host {asked.host} lets others in and there is no key",
            remedy="set BATCHGEN_API_KEY, or give --host 127.0.0.1",
        )
    names = _names(asked.served_model_name, asked.model)
    calm_threads()
    with extra_needed("serve", "exec,serve"):
        from batchgen.exec.job import ExecJob
        from batchgen.exec.serving import Batches
    state = asked.state
    job = ExecJob(input=state, output=state, **of_engine(asked))
    with open_store(state) as store, listening(asked.host, asked.port) as on:
        for batch in store.unfinished():
            if batch.model is not None and batch.model not in names:
                raise UserError(
                    f"{batch.id} in {state} is for the model '{batch.model}', which is not served",
                    remedy="give it as --served-model-name, or another --state",
                )
        _until_signal(asked, store, Batches(job, say), names, key, on)
        left = store.num_unfinished()
    if left:
        raise Unfinished(
            f"stopped: {left} batches are unfinished, in {state}",
            remedy="the same command goes on with them",
            code="stopped",
        )
    return 0


def _until_signal(
    asked: ServeFlags,
    store: Store,
    batches: Batches,
    names: tuple[str, ...],
    key: str,
    on: socket.socket,
) -> None:
    """Answers requests on a socket that listens, and runs batches beside, until a signal."""
    from batchgen.serve.app import Service
    from batchgen.serve.clerk import Clerk
    from batchgen.serve.engine import Engine
    from batchgen.serve.guard import Guard
    from batchgen.serve.listen import ended_by_signals, make_server
    from batchgen.serve.turns import Turns

    limits = _limits(asked)
    engine = Engine(store, batches, Turns(asked.slice_s), lambda: clerk.wake(), say)
    clerk = Clerk(store, engine, limits, names, say)
    began = int(time.time())
    service = Service(
        store=store, engine=engine, clerk=clerk, limits=limits, models=names, began=began
    )
    log = say if asked.verbose else None
    server = make_server(Guard(service.app(), limits=limits, api_key=key, say=say, log=log))

    def stop() -> None:
        server.should_exit = True
        engine.halt()

    with ended_by_signals(stop):
        engine.start()
        clerk.start()
        shown = f"[{asked.host}]" if ":" in asked.host else asked.host
        say(f"serving {', '.join(names)} on http://{shown}:{on.getsockname()[1]}/v1")
        asyncio.run(server.serve(sockets=[on]))
        clerk.stop(DRAIN_S)
        if not engine.stop(DRAIN_S):
            say("stopped while the engine is at work; the same command goes on")
            os._exit(INTERRUPTED)


def _limits(asked: ServeFlags) -> Limits:
    from batchgen.serve.limits import Limits

    return Limits(
        file_bytes=asked.max_file_mb * 1_000_000,
        rows=asked.max_requests,
        stored_bytes=asked.max_stored_gb * 1_000_000_000,
        unfinished=asked.max_batches,
        slice_s=asked.slice_s,
    )


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
