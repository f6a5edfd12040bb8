"""Hostile values, drawn by a seeded generator: numbers, texts, and damage to JSON and bytes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from random import Random
from typing import Any

LLAMA = ("--model", "llama-3.1-8b", "--gpu", "h100", "--gpus", "2")
SIM = (*LLAMA, "--layout", "tp1")
TRACE = ("sim", "--trace", "t.jsonl")
RUN = ("exec", "--model", "m", "-i", "in.jsonl", "-o", "o.jsonl", "--threads", "1")
OUT = ("o.jsonl",)

NUMBERS = (
    *("0", "1", "2", "3", "7", "64", "100", "-1", "-0", "+1", "00012", "0.5", "1.5", "0.999999"),
    *("1e-320", "5e-324", "1e-308", "1e-30", "1e5", "1e15", "1e18", "1e30", "1e300", "1e308"),
    *("-1e308", "1e309", "1e999", "nan", "NaN", "inf", "-inf", "Infinity", "0x10", "1_000"),
    *("2147483646", "2147483647", "2147483648", "4294967295", "4294967296", "9007199254740993"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809"),
    *(
        "9" * 20,
        "9" * 400,
        "9" * 5000,
        "-" + "9" * 5000,
        "1" + "0" * 60_000,
        "0." + "0" * 5000 + "1",
    ),
    *(
        "",
        " ",
        " 5",
        "5 ",
        "1,5",
        "1e",
        "e5",
        "1/2",
        "\u0663",
        "\uff11",
        "\u00b2",
        "\u2155",
        "true",
        "None",
    ),
    *(
        "1e308*5",
        "5%",
        "$1",
        "x" * 3000,
        "--5",
        "1\n2",
        "\x1b[31m5",
        "\u202e5",
        "1e-5000",
        "0" * 3000,
    ),
)

TEXTS = (
    *(
        "",
        " ",
        "x",
        "-",
        "--",
        ".",
        "..",
        "/",
        "=",
        ":",
        ",",
        "+",
        "a.b=c",
        "a=b",
        ".=",
        "a.b",
        "a..b=1",
    ),
    *(
        "x" * 300,
        "x" * 5000,
        "x " * 3000,
        "x," * 3000,
        "\u00e9" * 3000,
        "\U0001f600" * 500,
        "\u202e",
        "\u200b",
    ),
    *(
        "\x1b[31mred\x1b[0m",
        "a\nb",
        "a\rb",
        "a\tb",
        "a\x07b",
        "%s",
        "%d%n",
        "{}",
        "{0}",
        "{x!r:9}",
        "${HOME}",
    ),
    *(
        "'",
        '"',
        "\\",
        "`id`",
        "$(id)",
        ";",
        "|",
        "*",
        "~",
        "~root",
        "\u0000".strip("\0"),
        "None",
        "null",
    ),
    *(
        "order.part=arrival",
        "[1]",
        "{'a': 1}",
        "tp1",
        "dp0",
        "best",
        "rule",
        "batchgen",
        "vllm,",
        ",vllm",
    ),
)

DEEP_JSON = '{"a":' * 40 + "[" * 40 + "]" * 40 + "}" * 40


def raw_values() -> list[str]:
    """JSON texts of values that no field expects."""
    plain: list[Any] = [
        *(None, True, False, 0, 1, -1, 2, 5, 1.5, -0.5, 1e-320, 1e308, -1e308, 2**31, 2**31 - 1),
        *(
            2**32,
            2**53 + 1,
            2**63,
            2**64,
            10**30,
            "",
            "x",
            "x" * 4000,
            "5",
            "\x1b[31m",
            "../x",
            "/etc",
        ),
        *("\u0000", "\ud800", "a\nb", [], {}, [[]], [{}], {"": ""}, [1, 2, 3], [None], ["x"] * 3),
        *(
            {"type": "yarn"},
            {"a": {"a": {"a": 5}}},
            ["x" * 1000] * 5,
            [0] * 2000,
            [1e400],
            "\U0001f600",
        ),
    ]
    own = [
        "9" * 400,
        "9" * 5000,
        "-" + "9" * 5000,
        "1e400",
        "NaN",
        "Infinity",
        DEEP_JSON,
        '"\\ud800"',
    ]
    return [json.dumps(one) for one in plain] + own


RAW = raw_values()


class Raw:
    """A JSON text inside a value, written as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def dumps(value: Any) -> str:
    """JSON of a value that holds `Raw`."""
    kept: list[str] = []

    def plain(one: Any) -> str:
        kept.append(one.text)
        return f"\u2603{len(kept) - 1}\u2603"

    text = json.dumps(value, default=plain, ensure_ascii=False)
    for number, raw in enumerate(kept):
        text = text.replace(f'"\u2603{number}\u2603"', raw)
    return text


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON value."""
    found = []
    keys: Sequence[Any] = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(min(len(value), 50))
    for key in keys:
        found.append((value, key))
        found += places(value[key])
    return found


def damaged(value: Any, rng: Random, known: Sequence[str] = ()) -> Any:
    """A JSON value with one to three odd values deep inside, things taken away or put in; `known`:
    names of fields that may be put in. The value is changed."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        inside = places(value)
        if known and (rng.random() < 0.4 or not inside) and isinstance(value, dict):
            value[rng.choice(known)] = Raw(rng.choice(RAW))
            continue
        if not inside:
            return Raw(rng.choice(RAW))
        holder, key = rng.choice(inside)
        what = rng.random()
        if what < 0.1:
            del holder[key]
        elif what < 0.2 and isinstance(holder, dict):
            holder["\u00e9" * 3] = Raw(rng.choice(RAW))
        elif (
            what < 0.3
            and isinstance(holder[key], int | float)
            and not isinstance(holder[key], bool)
        ):
            holder[key] = holder[key] * rng.choice((-1, 2, 3, 1 << 31, 1 << 62, 0.5))
        else:
            holder[key] = Raw(rng.choice(RAW))
    return value


def damaged_bytes(data: bytes, rng: Random) -> bytes:
    """Cut, flipped, doubled, filled or emptied."""
    what = rng.randrange(7)
    at = rng.randrange(len(data) + 1)
    if what == 0:
        return data[:at]
    if what == 1:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if what == 2:
        end = min(len(data), at + rng.choice((1, 10, 1000)))
        return data[:at] + data[end:]
    if what == 3:
        return (
            data[:at]
            + bytes(rng.randrange(256) for _ in range(rng.choice((1, 8, 300))))
            + data[at:]
        )
    if what == 4:
        return data + data[:at]
    if what == 5:
        return b"\0" * rng.choice((0, 1, len(data)))
    end = min(len(data), at + rng.choice((4, 100)))
    return data[:at] + b"\xff" * (end - at) + data[end:]


def lines(text: str) -> tuple[tuple[str, ...], ...]:
    """Command lines as a shell writes them; SIM and LLAMA stand for what `places` has by these
    names."""
    whole = text.replace("\\\n", "")
    words = {"SIM": SIM, "LLAMA": LLAMA}
    return tuple(
        tuple(part for word in shlex.split(line) for part in words.get(word, (word,)))
        for line in whole.strip().splitlines()
    )
