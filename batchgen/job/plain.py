"""The usual chat of OpenAI's batches, read and checked at once: a type that msgspec decodes. Every
other line is left to `job.drafting`, which also says what is wrong with one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypedDict

import msgspec

from batchgen.job.fields import IGNORED, URLS, USED
from batchgen.job.jsonl import read_at_once

MESSAGES = b'"messages"'
URL = next(url for url, kind in URLS.items() if kind == "chat")


class Message(TypedDict):
    role: str
    content: str


# All fields about which there is nothing to say, whatever they hold, and two that are checked here.
Body: Any = TypedDict(  # type: ignore[misc]
    "Body",
    dict.fromkeys(sorted(USED | IGNORED), Any)
    | {
        "model": str | None,
        "messages": Required[Annotated[list[Message], msgspec.Meta(min_length=1)]],
    },
    total=False,
)
Row: Any = TypedDict(  # type: ignore[misc]
    "Row",
    {
        "custom_id": Annotated[str, msgspec.Meta(min_length=1)],
        "method": Literal["POST"],
        "url": Literal[URL],  # type: ignore[valid-type]
        "body": Body,
    },
)
_DECODER = msgspec.json.Decoder(Row)


def plain_chat(line: bytes) -> tuple[str, dict[str, Any]] | None:
    """Id and body of a line that is a chat with plain texts and no field that is not known; None
    for any other. The messages need no further look."""
    if line.find(MESSAGES) < 0:  # others would be read in vain
        return None
    row = read_at_once(line, _DECODER)
    return None if row is None else (row["custom_id"], row["body"])
