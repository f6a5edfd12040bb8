"""What every request passes before it is looked at: who sends it, and how long it is.

With a key only who has it is heard. Without one the server listens on this machine alone; then
pages in a browser are the danger, which may send forms to any address: whatever names another host,
or comes from a page, is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchgen.oneline import escaped, named
from batchgen.serve.limits import Limits
from batchgen.serve.replies import ApiError, error_reply

FORM_BYTES = 1 << 16  # of an upload beside its file
BODY_BYTES = 1 << 20  # of everything else
RECEIVE_S = 60.0  # for the next piece of a body
DRAIN_S = 5.0
"""A client that is being refused may go on sending for so long: one that is cut off does not read
why."""
MOST_PATH = 200
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class TooLarge(ApiError):
    """The body of a request is longer than may be."""

    def __init__(self, most: int) -> None:
        message = f"the request is longer than {most} bytes"
        super().__init__(413, message, code="request_too_large")


class Guard:
    """An ASGI application in front of another. `api_key` "" lets all in that come from this machine
    itself; `log` gets a line per request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        api_key: str,
        say: Callable[[str], None],
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._app, self._limits, self._say, self._log = app, limits, say, log
        self._key = _digest(api_key.encode()) if api_key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.monotonic()
        body = _Body(scope, receive, self._most_bytes(scope))
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400:
                    await body.drain(self._limits.file_bytes)
            await send(message)

        try:
            self._check(scope)
            body.check()
            await self._app(scope, body.receive, sending)
        except ApiError as error:
            await error_reply(error)(scope, receive, sending)
        except Exception as error:
            self._say(f"internal error, a bug in batchgen: {named(error)}")
            if not status:
                await error_reply(ApiError(500, "internal error"))(scope, receive, sending)
        if self._log is not None:
            path = escaped(scope["path"])[:MOST_PATH]
            self._log(f"{scope['method']} {path} {status} {time.monotonic() - began:.3f} s")

    def _most_bytes(self, scope: Scope) -> int:
        is_upload = scope["path"].rstrip("/") == "/v1/files"
        return self._limits.file_bytes + FORM_BYTES if is_upload else BODY_BYTES

    def _check(self, scope: Scope) -> None:
        """Raises ApiError for who must not be heard."""
        if self._key:
            given = _header(scope, b"authorization")
            kind, _, key = given.partition(b" ")
            # Digests: their comparison tells nothing of the key, its length neither.
            if (
                not hmac.compare_digest(_digest(key.strip()), self._key)
                or kind.lower() != b"bearer"
            ):
                raise ApiError(
                    401,
                    "incorrect API key provided" if given else "no API key was provided",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            return
        host = _header(scope, b"host").decode("latin-1")
        name = host.rpartition("]")[0].removeprefix("[") if "]" in host else host.partition(":")[0]
        if name.lower() not in LOCAL_NAMES or _header(scope, b"origin"):
            raise ApiError(
                403,
                "without an API key only clients on this machine are served, and no web pages",
                code="forbidden",
            )


class _Body:
    """The body of a request, as long as it may be."""

    def __init__(self, scope: Scope, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self._told = _header(scope, b"content-length")
        self._taken = 0
        self._is_over = False

    def check(self) -> None:
        """Raises TooLarge where the client says so itself."""
        if self._told.isdigit() and (len(self._told) > 18 or int(self._told) > self._most):
            raise TooLarge(self._most)

    async def receive(self) -> Message:
        if self._is_over:
            return await self._receive()
        try:
            async with asyncio.timeout(RECEIVE_S):
                message = await self._receive()
        except TimeoutError:
            self._is_over = True  # nobody waits for the rest of it
            raise ApiError(408, "the body of the request did not come", code="timeout") from None
        self._is_over = not message.get("more_body", False)
        self._taken += len(message.get("body", b""))
        if self._taken > self._most:
            raise TooLarge(self._most)
        return message

    async def drain(self, most: int) -> None:
        """Read what the client still sends, for a while, and throw it away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self._is_over and self._taken <= self._most + most:
                    message = await self._receive()
                    self._taken += len(message.get("body", b""))
                    self._is_over = not message.get("more_body", False)


def _header(scope: Scope, name: bytes) -> bytes:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value for one, value in headers if one == name), b"")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
