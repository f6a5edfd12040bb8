"""A file of prompts through a server, with the official client and nothing of ours.

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=... \\
        python examples/serve_client.py PROMPTS.jsonl ANSWERS.jsonl

Prompts are rows with `custom_id`, `messages` and `max_tokens`, like those of examples/prompts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from openai import OpenAI

EVERY_S = 1.0


def main(prompts: Path, answers: Path) -> int:
    client = OpenAI(max_retries=10)  # a server that starts is waited for
    model = client.models.list().data[0].id
    requests = []
    for line in prompts.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        body = {"model": model, "messages": row["messages"], "max_tokens": row["max_tokens"]}
        request = {"custom_id": row["custom_id"], "method": "POST", "url": "/v1/chat/completions"}
        requests.append(json.dumps(request | {"body": body}))
    file = client.files.create(
        file=("requests.jsonl", "\n".join(requests).encode()), purpose="batch"
    )
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(EVERY_S)
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        if counts is not None:
            print(f"{batch.status}: {counts.completed} of {counts.total}", file=sys.stderr)
    for error in batch.errors.data or [] if batch.errors else []:
        print(f"line {error.line}: {error.code}: {error.message}", file=sys.stderr)
    if batch.output_file_id is None:
        return 1
    answers.write_bytes(client.files.content(batch.output_file_id).content)
    return 1 if batch.error_file_id else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
