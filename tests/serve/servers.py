"""Servers in processes of their own, and clients of theirs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from openai.types import Batch

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
KEY = "a-key-of-the-tests"
FAST = {"OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "1700000000", "BATCHGEN_API_KEY": KEY}


class Server:
    """A process that serves the model `tiny`; what it says is in `said`."""

    def __init__(
        self, model: Path, state: Path, *options: str, key: bool = True, shell: str = ""
    ) -> None:
        argv = ["--model", str(model), "--state", str(state), "--port", "0", "--exact"]
        argv += ["--threads", "1", *options]
        before = ["sh", "-c", f'{shell} exec "$@"', "sh"]
        environment = os.environ | FAST
        if not key:
            del environment["BATCHGEN_API_KEY"]
        self.process = subprocess.Popen(
            [*before, sys.executable, "-P", "-m", "batchgen", "serve", *argv],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            self.port = int(self.wait_for(r"http://[\d.]+:(\d+)/v1")[1])
        except BaseException:
            self.end(signal.SIGKILL)
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)

    def wait_for(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """A line that it says."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            over = self.process.poll() is not None
            for line in list(self.said):
                if found := re.search(pattern, line):
                    return found
            assert not over, "".join(self.said)
            time.sleep(0.02)
        raise AssertionError("".join(self.said))

    def client(self, key: str = KEY, retries: int = 0) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=retries)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        assert "Traceback" not in "".join(self.said), "".join(self.said)
        return code


@contextmanager
def serving(
    model: Path, state: Path, *options: str, key: bool = True, shell: str = ""
) -> Iterator[Server]:
    """`shell`: commands before the server, for instance limits."""
    server = Server(model, state, *options, key=key, shell=shell)
    try:
        yield server
    finally:
        server.end(signal.SIGKILL)


def row(name: str, text: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    """A request."""
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    if url == COMPLETIONS:
        prompt = {"prompt": text}
    if url == "/v1/responses":
        prompt = {"input": text}
    return {
        "custom_id": name,
        "method": "POST",
        "url": url,
        "body": {"model": "tiny"} | prompt | body,
    }


def upload(client: OpenAI, rows: Sequence[Any]) -> str:
    """The id of a file with these lines, of which texts are taken as they are."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    data = "".join(line + "\n" for line in lines).encode()
    return client.files.create(file=("rows.jsonl", data), purpose="batch").id


def create(client: OpenAI, rows: Sequence[Any], url: Any = CHAT, **more: Any) -> Batch:
    more.setdefault("completion_window", "24h")
    return client.batches.create(input_file_id=upload(client, rows), endpoint=url, **more)


def wait(client: OpenAI, batch: Batch, until: Callable[[Batch], bool] | None = None) -> Batch:
    """The batch when it is over, or when `until` is true of it."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            assert until is None or until(batch), batch
            return batch
        if until is not None and until(batch):
            return batch
        time.sleep(0.03)
    raise AssertionError(batch)


def lines(client: OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The objects of a file by their custom_id, each once."""
    if file_id is None:
        return {}
    found = [json.loads(line) for line in client.files.content(file_id).content.splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id


def ended(batch: Batch) -> int:
    assert batch.request_counts is not None
    return batch.request_counts.completed + batch.request_counts.failed
