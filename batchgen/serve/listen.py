"""The socket, the server on it, and the signals that end it."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from batchgen.errors import UserError

MOST_CONNECTIONS = 256
GRACE_S = 5  # that requests have to end in
INTERRUPTED = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FIRST = b"\nstopping after this pass; again stops at once\n"
SECOND = b"\nstopped at once; the same command goes on\n"


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address. Raises UserError for what is none."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise UserError(
            f"--host '{host:.80}' is not an IP address", remedy="for instance 127.0.0.1 or 0.0.0.0"
        ) from None


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket on which clients may connect. Raises UserError if it cannot be had."""
    name = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((name, port))
            found.listen(socket.SOMAXCONN)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} of {host} is in use", remedy="stop who has it, or give --port"
                ) from None
            raise UserError(
                f"cannot listen on port {port} of {host}: {error.strerror}",
                remedy="give another --host and --port",
            ) from None
        yield found


class _Server(uvicorn.Server):
    """Signals are ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: ASGIApp) -> uvicorn.Server:
    """A server that says nothing itself; it ends when its `should_exit` is true."""
    return _Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


@contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal calls `stop`, which must take no lock; the second ends the process at once.
    One that is ignored (nohup) stays so."""
    before: dict[int, Any] = {}
    is_stopping = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            _tell(SECOND)
            os._exit(INTERRUPTED)
        is_stopping = True
        _tell(FIRST)
        stop()

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for each, one in before.items():
            signal.signal(each, one)


def _tell(text: bytes) -> None:
    """A handler may come in the middle of a print: not through Python's buffers."""
    with suppress(OSError):
        os.write(2, text)
