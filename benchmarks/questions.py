"""Questions as requests, the options of what sends them, and how its result is told. It sends none.

Questions are the field `question` of JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import machine

URL = "/v1/chat/completions"


def options(about: str | None) -> argparse.ArgumentParser:
    """Those of every job that is killed on the way; about: its module's docstring."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("questions", nargs="+", type=Path)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--kills", default=2, type=int)
    parser.add_argument("--max-tokens", default=64, type=int)
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--output", type=Path)
    return parser


def requests(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One request per question."""
    found: list[dict[str, Any]] = []
    for path in args.questions:
        for line in path.read_text(encoding="utf-8").splitlines():
            messages = [{"role": "user", "content": json.loads(line)["question"]}]
            body = {"model": "m", "messages": messages, "max_tokens": args.max_tokens}
            name = f"row-{len(found)}"
            found.append({"custom_id": name, "method": "POST", "url": URL, "body": body})
    return found[: args.limit]


def tell(found: dict[str, Any], load: float, args: argparse.Namespace) -> None:
    """Publishes what was found, beside the machine and its load, which was `load` before."""
    found |= {
        "machine": machine.describe(),
        **machine.commit(),
        "load_average": [load, os.getloadavg()[0]],
    }
    machine.publish(found, args.output)
