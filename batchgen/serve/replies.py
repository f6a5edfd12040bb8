"""Replies in OpenAI's forms: objects, and errors that its clients understand."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

KINDS = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error"}
MOST_MESSAGE = 500


class ApiError(Exception):
    """A request that is answered by an error. `param`: the field that was wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers
        super().__init__(message)


def reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON object."""
    body = msgspec.json.encode(value) + b"\n"
    return Response(body, status, headers, media_type="application/json")


def error_reply(error: ApiError) -> Response:
    """The error of a request."""
    kind = KINDS.get(error.status)
    if kind is None:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    if error.status == 429:
        kind = "rate_limit_error"
    return reply(
        {
            "error": {
                "message": error.message[:MOST_MESSAGE],
                "type": kind,
                "param": error.param,
                "code": error.code,
            }
        },
        error.status,
        error.headers,
    )
