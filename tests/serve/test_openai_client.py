"""The official client over a real socket: uploads, creates, polls, cancels, downloads."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from servers import CHAT, COMPLETIONS, Server, create, ended, lines, row, serving, upload, wait

import batchgen

TYPES = {CHAT: ChatCompletion, COMPLETIONS: Completion, "/v1/responses": Response}
LONG = {"max_tokens": 4000, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # No row of the tests is cut off by a turn of half a second, and long ones take many turns.
    with serving(model, tmp_path_factory.mktemp("client") / "state", "--slice", "0.5") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS, "/v1/responses"])
def test_a_batch_from_upload_to_download(url: str, client: OpenAI, model: Path) -> None:
    key = "max_output_tokens" if url == "/v1/responses" else "max_tokens"
    rows = [row(f"r{i}", f"number {i}", url, **{key: 3 + i}) for i in range(8)]
    created = create(client, rows, url, metadata={"for": "a test"})
    assert created.status == "validating"
    assert created.metadata == {"for": "a test"}
    batch = wait(client, created)
    assert batch.status == "completed", batch
    assert batch.error_file_id is None
    assert batch.model == "tiny"
    assert (batch.in_progress_at or 0) <= (batch.finalizing_at or 0) <= (batch.completed_at or 0)
    assert batch.expires_at == batch.created_at + 86400
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (8, 8, 0)
    got = lines(client, batch.output_file_id)
    assert list(got) == [f"r{i}" for i in range(8)]
    # The same answers as the command line's, and their tokens add up.
    want = batchgen.run_batch(model, rows, exact=True, threads=1)
    for one in got.values():
        TYPES[url].model_validate(one["response"]["body"])
    assert [one["response"]["status_code"] for one in got.values()] == [200] * 8
    for result in want.rows:
        assert result.custom_id is not None
        ours = dict(got[result.custom_id]["response"]["body"])
        theirs = dict(result.raw["response"]["body"])
        for body in (ours, theirs):
            body.pop("created", None), body.pop("created_at", None)
        assert ours == theirs
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(one.prompt_tokens for one in want.rows)
    assert batch.usage.output_tokens == sum(one.completion_tokens for one in want.rows)
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens


def test_objects_are_of_the_types_of_the_client(client: OpenAI) -> None:
    """The client takes almost anything; its types are stricter."""
    for made in (
        wait(client, create(client, [row("a", "x", max_tokens=1), row("b", "x", n=-1)])),
        wait(client, create(client, ["nothing"])),
        create(client, [row("a", "x", max_tokens=1)]),
    ):
        told = client.batches.with_raw_response.retrieve(made.id).http_response.json()
        assert set(openai.types.Batch.model_fields) == set(told)
        openai.types.Batch.model_validate(told)
        wait(client, made)
    file = client.files.with_raw_response.retrieve(made.input_file_id).http_response.json()
    assert set(openai.types.FileObject.model_fields) == set(file)
    openai.types.FileObject.model_validate(file)


def test_rows_that_fail_are_in_a_file_of_their_own(client: OpenAI) -> None:
    rows = [
        row("good", "hello", max_tokens=2),
        row("hot", "hello", temperature=5000),
        row("long", "hello", max_tokens=10**6),
        row("tools", "hello", tools=[{"type": "function"}]),
    ]
    batch = wait(client, create(client, rows))
    assert batch.status == "completed"
    assert list(lines(client, batch.output_file_id)) == ["good"]
    bad = lines(client, batch.error_file_id)
    assert {name: one["error"]["code"] for name, one in bad.items()} == {
        "hot": "invalid_field",
        "long": "context_length_exceeded",
        "tools": "unsupported_field",
    }
    assert all(one["response"] is None for one in bad.values())
    error = bad["long"]["error"]
    assert error["max_tokens"] == 10**6
    assert 0 < error["prompt_tokens"] < error["limit"]


def test_rows_that_all_fail_are_a_batch_too(client: OpenAI) -> None:
    batch = wait(client, create(client, [row(f"{i}", "x", temperature=-1) for i in range(3)]))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert len(lines(client, batch.error_file_id)) == 3
    assert ended(batch) == 3


def test_bad_lines_fail_the_batch_before_any_work(client: OpenAI) -> None:
    rows = [
        row("a", "x"),
        "no JSON",
        row("a", "x"),
        row("b", "x", COMPLETIONS),
        row("c", "x", model="gpt-4"),
        row("d", "x") | {"method": "GET"},
        {"custom_id": "e"},
        row("", "x"),
        row("f", "x") | {"custom_id": 7},
    ]
    batch = wait(client, create(client, rows))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.output_file_id is None
    assert batch.error_file_id is None
    assert batch.errors is not None
    assert [(one.line, one.code, one.param) for one in batch.errors.data or []] == [
        (2, "invalid_json", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "url_mismatch", "url"),
        (5, "model_not_found", "body.model"),
        (6, "invalid_field", "method"),
        (7, "missing_field", "method"),
        (8, "invalid_field", "custom_id"),
        (9, "invalid_field", "custom_id"),
    ]


def halves(short: int, long: int) -> list[dict[str, Any]]:
    """Rows that end at once, and rows that take a while."""
    rows = [row(f"short{i}", "hello", max_tokens=2) for i in range(short)]
    return rows + [row(f"long{i}", "hello", **LONG) for i in range(long)]


def unanswered(client: OpenAI, rows: list[dict[str, Any]], batch: Any, code: str) -> None:
    """Every row is in one of the files, those without an answer with this code."""
    good, bad = lines(client, batch.output_file_id), lines(client, batch.error_file_id)
    assert sorted([*good, *bad]) == sorted(one["custom_id"] for one in rows)
    assert {f"short{i}" for i in range(4)} <= set(good)
    assert bad
    assert {one["error"]["code"] for one in bad.values()} == {code}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (len(rows), len(good), len(bad))


def test_cancelling_delivers_what_is_done(client: OpenAI) -> None:
    rows = halves(4, 60)
    batch = create(client, rows)
    wait(client, batch, lambda one: ended(one) >= 4)
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = wait(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert batch.cancelling_at is not None
    unanswered(client, rows, batch, "batch_cancelled")
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(wait(client, create(client, [row("x", "x", max_tokens=1)])).id)


def test_expiry_delivers_what_is_done(client: OpenAI) -> None:
    rows = halves(4, 60)
    window: Any = "3s"
    batch = wait(client, create(client, rows, completion_window=window))
    assert batch.status == "expired"
    assert (batch.expired_at or 0) >= (batch.expires_at or 0) == batch.created_at + 3
    unanswered(client, rows, batch, "batch_expired")


def test_batches_take_turns(client: OpenAI) -> None:
    """A short batch need not wait for a long one, and the long one's answers are what they are
    alone."""
    rows: list[dict[str, Any]] = []
    took_s = 0.0
    while took_s < 3:  # many turns, however fast the machine is
        rows += [
            row(f"r{i}", f"row {i}", max_tokens=900 + i, ignore_eos=True)
            for i in range(len(rows), 2 * len(rows) + 6)
        ]
        began_s = time.monotonic()
        alone = lines(client, wait(client, create(client, rows)).output_file_id)
        took_s = time.monotonic() - began_s
    long = create(client, rows)
    shorts = [create(client, [row(f"{i}", "hello", max_tokens=2)]) for i in range(2)]
    for short in shorts:
        assert wait(client, short).status == "completed"
    assert client.batches.retrieve(long.id).status == "in_progress"
    long = wait(client, long)
    assert long.status == "completed"
    turned = lines(client, long.output_file_id)
    assert list(turned) == list(alone)
    for name, one in turned.items():
        assert one["response"]["body"]["choices"] == alone[name]["response"]["body"]["choices"]


def test_files_are_listed_told_of_and_deleted(client: OpenAI) -> None:
    names = [upload(client, [row(f"{i}", "x")]) for i in range(5)]
    assert [one.id for one in client.files.list(limit=2)][:5] == names[::-1]  # over pages
    oldest = next(iter(client.files.list(order="asc", purpose="batch")))
    assert client.files.list(after=names[1], order="asc", limit=2).data[0].id == names[2]
    assert oldest.purpose == "batch"
    told = client.files.retrieve(names[0])
    assert (told.filename, told.bytes, told.object) == ("rows.jsonl", 143, "file")
    assert len(client.files.content(names[0]).content) == told.bytes
    assert client.files.delete(names[0]).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(names[0])
    expiring = client.files.create(
        file=("x", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert expiring.expires_at == expiring.created_at + 3600
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("x", b"{}"), purpose="fine-tune")


def test_the_input_of_a_batch_that_runs_stays(client: OpenAI) -> None:
    batch = create(client, halves(0, 2))
    with pytest.raises(openai.BadRequestError, match="unfinished batch"):
        client.files.delete(batch.input_file_id)
    client.batches.cancel(batch.id)
    wait(client, batch)
    assert client.files.delete(batch.input_file_id).deleted


def test_results_expire_when_asked_to(client: OpenAI) -> None:
    after: Any = {"anchor": "created_at", "seconds": 7200}
    batch = wait(client, create(client, [row("x", "x", max_tokens=1)], output_expires_after=after))
    assert batch.output_file_id is not None
    file = client.files.retrieve(batch.output_file_id)
    assert file.purpose == "batch_output"
    assert file.expires_at == file.created_at + 7200


def test_batches_are_listed_in_pages(client: OpenAI) -> None:
    made = [create(client, ["nothing"]) for _ in range(3)]
    page = client.batches.list(limit=2)
    assert [one.id for one in page.data] == [made[2].id, made[1].id]
    assert page.has_next_page()
    assert page.get_next_page().data[0].id == made[0].id
    with pytest.raises(openai.BadRequestError):
        client.batches.list(after="batch_none")
    for one in made:
        wait(client, one)


def test_models(client: OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "batchgen"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_what_a_batch_cannot_be(client: OpenAI) -> None:
    file_id = upload(client, [row("x", "x")])
    good: dict[str, Any] = {
        "input_file_id": file_id,
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    for wrong, param in (
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "999d"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {f"{i}": "v" for i in range(17)}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata[...]"),
        ({"input_file_id": 5}, "input_file_id"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 5}},
            "output_expires_after.seconds",
        ),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**(good | wrong))
        assert caught.value.param == param, wrong
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_" + "0" * 24)


def test_async_clients_at_once(server: Server) -> None:
    """Several at a time; nobody's rows are another's."""
    import asyncio

    async def one(number: int) -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{server.port}/v1", api_key=server.client().api_key
        ) as client:
            rows = [row(f"{number}-{i}", "x", max_tokens=2) for i in range(3)]
            data = "\n".join(map(json.dumps, rows)).encode()
            file = await client.files.create(file=("x", data), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h"
            )
            until = time.monotonic() + 100
            while batch.status != "completed" and time.monotonic() < until:
                await asyncio.sleep(0.1)
                batch = await client.batches.retrieve(batch.id)
            text = (await client.files.content(batch.output_file_id or "")).text
            return [json.loads(line)["custom_id"] for line in text.splitlines()]

    async def every() -> list[list[str]]:
        return await asyncio.gather(*(one(number) for number in range(5)))

    assert asyncio.run(every()) == [[f"{n}-{i}" for i in range(3)] for n in range(5)]
