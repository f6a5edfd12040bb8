"""Questions through `batchgen serve` with the official client; the server is killed on the way.

    python benchmarks/serve_job.py --model models/sums-moe --kills 2 QUESTIONS.jsonl ...

Says how long it took and what came back, as JSON; exit code 1 if a row is missing or twice.
Questions are the field `question` of JSON lines.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch
from questions import URL, options, requests, tell

POLL_S = 0.5


class Server:
    """A process of `batchgen serve` on a port of its choice."""

    def __init__(self, model: Path, state: Path, options: list[str]) -> None:
        argv = ["--model", str(model), "--served-model-name", "m", "--state", str(state)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "batchgen", "serve", *argv, "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.search(r"http://\S+", said)
        if found is None:
            sys.exit(f"the server did not start: {said}")
        self.client = OpenAI(base_url=found[0], api_key="none")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def ended(batch: Batch) -> int:
    counts = batch.request_counts
    return 0 if counts is None else counts.completed + counts.failed


def run(
    model: Path, rows: list[dict[str, Any]], kills: int, state: Path, options: list[str]
) -> dict[str, Any]:
    """The batch from upload to download; the server is killed when so many equal parts are done."""
    began = time.monotonic()
    batch: Batch | None = None
    killed_at = []
    while True:
        server = Server(model, state, options)
        client = server.client
        try:
            if batch is None:
                data = "\n".join(map(json.dumps, rows)).encode()
                file = client.files.create(file=("rows.jsonl", data), purpose="batch")
                batch = client.batches.create(
                    input_file_id=file.id, endpoint=URL, completion_window="24h"
                )
            stop = len(rows) * (len(killed_at) + 1) // (kills + 1)
            while batch.status in ("validating", "in_progress", "finalizing"):
                time.sleep(POLL_S)
                batch = client.batches.retrieve(batch.id)
                if len(killed_at) < kills and ended(batch) >= stop:
                    break
            else:
                contents = [
                    client.files.content(name).content.splitlines() if name else []
                    for name in (batch.output_file_id, batch.error_file_id)
                ]
                break
            killed_at.append(ended(batch))
        finally:
            server.kill()
    good, bad = [[json.loads(line) for line in lines] for lines in contents]
    names = [row["custom_id"] for row in rows]
    answered = [one["custom_id"] for one in good]
    is_answered = set(answered)
    tokens = sum(one["response"]["body"]["usage"]["total_tokens"] for one in good)
    return {
        "rows": len(rows),
        "status": batch.status,
        "answered": len(good),
        "failed_by_code": dict(Counter(one["error"]["code"] for one in bad)),
        "killed_at": killed_at,
        "wall_s": round(time.monotonic() - began, 1),
        "each_once": sorted(answered + [one["custom_id"] for one in bad]) == sorted(names),
        "in_order": answered == [name for name in names if name in is_answered],
        "counts_agree": batch.request_counts is not None
        and (batch.request_counts.completed, batch.request_counts.failed) == (len(good), len(bad)),
        "usage_agrees": batch.usage is not None and batch.usage.total_tokens == tokens,
        "total_tokens": tokens,
    }


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--server", default="", help="more options of the server")
    args = parser.parse_args()
    rows = requests(args)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="batchgen-serve-") as folder:
        found = run(args.model, rows, args.kills, Path(folder) / "state", args.server.split())
    tell(found, load, args)
    wanted = ("each_once", "in_order", "counts_agree", "usage_agrees")
    return 0 if found["status"] == "completed" and all(found[name] for name in wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
