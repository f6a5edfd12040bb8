"""Which rows of a file are a job's, where several jobs share it. It reads none."""

from __future__ import annotations

from batchgen.errors import UserError


def parse_shard(text: object) -> tuple[int, int] | None:
    """ "2/4", or (2, 4), as (2, 4). Raises UserError."""
    if text is None:
        return None
    if isinstance(text, (tuple, list)):
        text = "/".join(map(str, text))
    first, slash, second = str(text).partition("/")
    numbers = [one.strip() for one in (first, second)]
    if slash and all(one.isascii() and one.isdecimal() and len(one) < 10 for one in numbers):
        part, parts = map(int, numbers)
        if 1 <= part <= parts:
            return part, parts
    raise UserError(f"--shard is '{text!s:.40}'", remedy="for instance 2/4: I of N, I from 1")
