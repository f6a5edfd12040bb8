"""The endpoints: files, batches and models of OpenAI's API. They look things up and write them
down; who runs batches is woken.
"""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from batchgen.job.fields import URLS
from batchgen.oneline import named, shown
from batchgen.serve.clerk import Clerk
from batchgen.serve.engine import Engine
from batchgen.serve.limits import Limits
from batchgen.serve.objects import Batch, FileObject, listed, window_s
from batchgen.serve.replies import ApiError, error_reply, reply
from batchgen.serve.store import Store, new_batch_id, new_file_id

MOST_METADATA, MOST_KEY, MOST_VALUE = 16, 64, 512
MOST_NAME = 255
EXPIRES_S = (3600, 2_592_000)
RETRY_S, MOST_RETRY_S = 5, 60
"""When to try again, if nobody knows how long the batch that runs will take; and if it is long."""

T = TypeVar("T")


class ExpiresAfter(msgspec.Struct, kw_only=True):
    """From when a file is made until it goes."""

    anchor: str
    seconds: int


class BatchRequest(msgspec.Struct, kw_only=True):
    """What a client gives to create a batch."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the endpoints work with. `models`: names under which the model is known, `began`: Unix
    seconds."""

    store: Store
    engine: Engine
    clerk: Clerk
    limits: Limits
    models: Collection[str]
    began: int

    # -- files ------------------------------------------------------------------------------------

    async def create_file(self, request: Request) -> Response:
        form = await request.form(max_files=1, max_fields=8, max_part_size=1 << 12)
        async with _Closing(form):
            purpose, upload = form.get("purpose"), form.get("file")
            if purpose != "batch":
                _refuse("purpose", "must be 'batch'")
            if not isinstance(upload, UploadFile):
                _refuse("file", "must be a file")
            size = upload.size or 0
            if not size:
                _refuse("file", "is empty")
            if size > self.limits.file_bytes:
                raise ApiError(
                    413,
                    f"the file has {size} bytes, at most {self.limits.file_bytes} are taken",
                    code="file_too_large",
                    param="file",
                )
            now_s, stays_s = int(time.time()), _form_expires(form)
            file = FileObject(
                id=new_file_id(),
                bytes=size,
                created_at=now_s,
                filename=(upload.filename or "file")[:MOST_NAME],
                purpose="batch",
                expires_at=None if stays_s is None else now_s + stays_s,
            )
            await run_in_threadpool(self._keep, upload, file)
        return reply(file.shown())

    def _keep(self, upload: UploadFile, file: FileObject) -> None:
        if self.store.stored_bytes() + file.bytes > self.limits.stored_bytes:
            raise ApiError(
                400,
                f"the files of this server may have {self.limits.stored_bytes} bytes together",
                code="storage_limit",
            )
        path = self.store.incoming()
        try:
            with path.open("xb") as to:
                shutil.copyfileobj(upload.file, to, 1 << 20)
                to.flush()
                os.fsync(to.fileno())
            self.store.add_file(path, file)
        finally:
            path.unlink(missing_ok=True)

    async def list_files(self, request: Request) -> Response:
        limit = _limit(request, 10_000, 10_000)
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            _refuse("order", "must be 'asc' or 'desc'")
        page = await run_in_threadpool(
            self.store.files,
            after=request.query_params.get("after"),
            limit=limit,
            ascending=order == "asc",
            purpose=request.query_params.get("purpose"),
        )
        if page is None:
            _refuse("after", "names no file")
        return reply(listed([file.shown() for file in page[0]], has_more=page[1]))

    async def retrieve_file(self, request: Request) -> Response:
        return reply((await self._file(request)).shown())

    async def delete_file(self, request: Request) -> Response:
        file = await self._file(request)
        if not await run_in_threadpool(self.store.remove_file, file):
            raise ApiError(
                400, f"{file.id} is the input of an unfinished batch", code="file_in_use"
            )
        return reply({"id": file.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        file = await self._file(request)
        path = self.store.path_of(file)
        if not path.is_file():
            _none("file", file.id)
        return FileResponse(path, media_type="application/octet-stream")

    async def _file(self, request: Request) -> FileObject:
        name = request.path_params["name"]
        file = await run_in_threadpool(self.store.file, name)
        if file is None or (file.expires_at is not None and file.expires_at <= time.time()):
            _none("file", name)
        return file

    # -- batches ----------------------------------------------------------------------------------

    async def create_batch(self, request: Request) -> Response:
        given = await _body(request, BatchRequest)
        if given.endpoint not in URLS:
            _refuse("endpoint", f"must be one of {', '.join(URLS)}")
        window = window_s(given.completion_window)
        if window is None:
            _refuse("completion_window", "must be like '24h' or '30m', at most '30d'")
        _check_metadata(given.metadata)
        after = given.output_expires_after
        if after is not None:
            _check_expires("output_expires_after", after.anchor, after.seconds)
        file = await run_in_threadpool(self.store.file, given.input_file_id)
        if file is None:
            _refuse("input_file_id", f"names no file: {shown(given.input_file_id)}")
        if file.purpose != "batch":
            _refuse("input_file_id", f"is a file of purpose '{file.purpose}', not 'batch'")
        now_s = int(time.time())
        batch = Batch(
            id=new_batch_id(),
            endpoint=given.endpoint,
            input_file_id=file.id,
            completion_window=given.completion_window,
            created_at=now_s,
            expires_at=now_s + window,
            metadata=given.metadata,
            output_expires_s=None if after is None else after.seconds,
        )
        most = self.limits.unfinished
        if not await run_in_threadpool(self.store.add_batch, batch, most=most):
            left_s = self.engine.left_s()
            retry_s = RETRY_S if left_s is None else min(MOST_RETRY_S, max(1, math.ceil(left_s)))
            raise ApiError(
                429,
                f"{most} batches are unfinished already; try again when one is over",
                code="queue_full",
                headers={"Retry-After": str(retry_s)},
            )
        self.clerk.wake()
        return reply(batch.shown())

    async def list_batches(self, request: Request) -> Response:
        page = await run_in_threadpool(
            self.store.batches,
            after=request.query_params.get("after"),
            limit=_limit(request, 20, 100),
        )
        if page is None:
            _refuse("after", "names no batch")
        return reply(listed([self._shown(batch) for batch in page[0]], has_more=page[1]))

    async def retrieve_batch(self, request: Request) -> Response:
        return reply(self._shown(await self._batch(request)))

    async def cancel_batch(self, request: Request) -> Response:
        batch = await self._batch(request)

        def cancel(batch: Batch) -> None:
            if batch.status in ("cancelling", "cancelled"):
                return
            if batch.status not in ("validating", "in_progress") or batch.ending:
                what = "ending" if batch.ending else batch.status
                raise ApiError(400, f"a batch that is {what} cannot be cancelled")
            batch.move("cancelling", int(time.time()))

        batch = await run_in_threadpool(self.store.change, batch.id, cancel)
        self.clerk.wake()
        return reply(self._shown(batch))

    async def _batch(self, request: Request) -> Batch:
        name = request.path_params["name"]
        batch = await run_in_threadpool(self.store.batch, name)
        if batch is None:
            _none("batch", name)
        return batch

    def _shown(self, batch: Batch) -> dict[str, Any]:
        return batch.shown(self.engine.counts_of(batch))

    # -- models -----------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        return reply({"object": "list", "data": [self._model(name) for name in self.models]})

    async def retrieve_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.models:
            _none("model", name)
        return reply(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.began, "owned_by": "batchgen"}

    # -- all --------------------------------------------------------------------------------------

    def app(self) -> Starlette:
        """The endpoints as an ASGI application."""
        routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("POST", "/files", self.create_file),
            ("GET", "/files", self.list_files),
            ("GET", "/files/{name}", self.retrieve_file),
            ("DELETE", "/files/{name}", self.delete_file),
            ("GET", "/files/{name}/content", self.content),
            ("POST", "/batches", self.create_batch),
            ("GET", "/batches", self.list_batches),
            ("GET", "/batches/{name}", self.retrieve_batch),
            ("POST", "/batches/{name}/cancel", self.cancel_batch),
            ("GET", "/models", self.list_models),
            ("GET", "/models/{name:path}", self.retrieve_model),
        ]
        app = Starlette(
            routes=[Route(f"/v1{path}", to, methods=[method]) for method, path, to in routes],
            exception_handlers={
                ApiError: _api_error,
                HTTPException: _http_error,
                ClientDisconnect: _gone,
                sqlite3.Error: _disk_error,
                OSError: _disk_error,
            },
        )
        app.router.redirect_slashes = False
        return app


# -- requests -------------------------------------------------------------------------------------


def _refuse(param: str, what: str) -> NoReturn:
    raise ApiError(400, f"'{param}' {what}", param=param, code="invalid_value")


def _none(kind: str, name: str) -> NoReturn:
    raise ApiError(404, f"there is no {kind} {shown(name)}", code=f"{kind}_not_found", param="id")


class _Closing:
    """A form whose temporary files go at the end."""

    def __init__(self, form: FormData) -> None:
        self._form = form

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        await self._form.close()


async def _body(request: Request, kind: type[T]) -> T:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(400, "the body must be of type application/json")
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise ApiError(400, what, param=where.strip(".`") or None, code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error!s:.100}", code="invalid_json") from None


def _limit(request: Request, usual: int, most: int) -> int:
    text = request.query_params.get("limit", str(usual))
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and 1 <= int(text) <= most):
        _refuse("limit", f"must be an integer from 1 to {most}")
    return int(text)


def _check_metadata(metadata: dict[str, str] | None) -> None:
    if metadata is None:
        return
    if len(metadata) > MOST_METADATA:
        _refuse("metadata", f"may have {MOST_METADATA} pairs")
    for key, value in metadata.items():
        if len(key) > MOST_KEY or len(value) > MOST_VALUE:
            _refuse(
                "metadata", f"may have keys of {MOST_KEY} and values of {MOST_VALUE} characters"
            )


def _check_expires(name: str, anchor: str, seconds: int) -> None:
    if anchor != "created_at":
        _refuse(f"{name}.anchor", "must be 'created_at'")
    if not EXPIRES_S[0] <= seconds <= EXPIRES_S[1]:
        _refuse(f"{name}.seconds", f"must be from {EXPIRES_S[0]} to {EXPIRES_S[1]}")


def _form_expires(form: FormData) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    text = seconds if isinstance(seconds, str) and seconds.isascii() else ""
    number = int(text) if text.isdecimal() and len(text) < 9 else 0
    _check_expires("expires_after", str(anchor), number)
    return number


# -- errors ---------------------------------------------------------------------------------------


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_reply(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path or method, a form that is none."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        path = shown(request.scope["path"], 100)  # not its URL: that is made of what a client says
        return error_reply(ApiError(404, f"there is no endpoint {path}", code="unknown_url"))
    headers = error.headers
    return error_reply(ApiError(error.status_code, str(error.detail), headers=headers))


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return error_reply(ApiError(400, "the client went away"))


async def _disk_error(request: Request, error: Exception) -> Response:
    return error_reply(ApiError(507, f"the disk refused: {named(error, 100)}", code="disk"))
