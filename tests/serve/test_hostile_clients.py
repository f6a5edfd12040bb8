"""Clients that mean no good, or know no better: each gets an error in OpenAI's form, and the server
goes on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from servers import CHAT, KEY, Server, create, lines, row, serving, upload, wait


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "state"


@pytest.fixture(scope="module")
def server(model: Path, state: Path) -> Iterator[Server]:
    options = ["--max-file-mb", "1", "--max-requests", "20", "--max-batches", "2", "--verbose"]
    with serving(model, state, *options) as server:
        yield server
        assert server.process.poll() is None
        assert "internal error" not in "".join(server.said)


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def raw(server: Server, data: bytes, more: bytes = b"", *, hang_up: bool = False) -> bytes:
    """What comes back for these bytes, until the server closes; or until the client does so."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as found:
        with suppress(OSError):  # it may close before it has read all
            found.sendall(data)
            found.sendall(more)
            if hang_up:
                found.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while piece := found.recv(1 << 16):
                answer += piece
    return answer


def request(
    server: Server, method: str, path: str, body: bytes = b"", key: str = KEY, **headers: str
) -> tuple[int, Any]:
    """Status and object of the reply."""
    given = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body))}
    if key:
        given["Authorization"] = f"Bearer {key}"
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given.items())
    answer = raw(server, head.encode("latin-1") + b"\r\n", body)
    first, _, rest = answer.partition(b"\r\n")
    text = rest.partition(b"\r\n\r\n")[2]
    return int(first.split()[1]), json.loads(text) if text.startswith(b"{") else text


JSON = {"Content_Type": "application/json"}


def is_error(found: tuple[int, Any], status: int) -> None:
    assert found[0] == status, found
    assert set(found[1]["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x", KEY[:-1], "\xfc\xff", "x" * 5000])
def test_a_wrong_key_opens_nothing(key: str, server: Server) -> None:
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/nothing")):
        found = request(server, method, path, key=key)
        is_error(found, 401)
        assert found[1]["error"]["code"] == "invalid_api_key"
    assert request(server, "GET", "/v1/models", key="", Authorization=f"Basic {KEY}")[0] == 401


def test_the_client_says_that_the_key_is_wrong(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        server.client(key="wrong").models.list()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"input_file_id": 1e999}',
        b'{"input_file_id": "' + b"9" * 5000 + b'"}',
        b'{"input_file_id": "x", "endpoint": "\\ud800", "completion_window": "24h"}',
        b'{"input_file_id": "\\u0000", "endpoint": "/v1/completions", "completion_window": "24h"}',
        b'{"input_file_id": "../../etc/passwd", "endpoint": "/v1/completions",'
        b' "completion_window": "24h"}',
        b'{"input_file_id": "x", "endpoint": "/v1/completions", "completion_window": "%s"}'
        % (b"9" * 5000 + b"h"),
    ],
)
def test_bodies_that_are_none(body: bytes, server: Server) -> None:
    is_error(request(server, "POST", "/v1/batches", body, **JSON), 400)
    is_error(request(server, "POST", "/v1/files", body, **JSON), 400)


@pytest.mark.parametrize(
    "name",
    [
        "../state.sqlite",
        "..%2f..%2fstate.sqlite",
        "%2e%2e/state.sqlite",
        "....//state.sqlite",
        "/etc/passwd",
        "%00",
        "file-%00",
        "file-" + "0" * 24 + "/../../state.sqlite",
        "%ff%fe",
        "file-" + "A" * 24,
        "x" * 20_000,
        "' OR 1=1 --",
    ],
)
def test_no_name_of_a_client_becomes_a_path(name: str, server: Server) -> None:
    for method, path in (
        ("GET", f"/v1/files/{name}"),
        ("GET", f"/v1/files/{name}/content"),
        ("DELETE", f"/v1/files/{name}"),
        ("GET", f"/v1/batches/{name}"),
        ("POST", f"/v1/batches/{name}/cancel"),
    ):
        found = request(server, method, path.replace(" ", "%20"))
        assert found[0] in (404, 405), found
        assert b"SQLite" not in repr(found).encode()


def test_names_of_files_are_only_shown(server: Server, client: OpenAI, state: Path) -> None:
    before = {one.name for one in state.iterdir()}
    for name in ("../../evil", "/etc/evil", "a\\b", "x" * 1000, "\u2028"):
        file = client.files.create(file=(name, b"{}\n"), purpose="batch")
        assert client.files.content(file.id).content == b"{}\n"
        client.files.delete(file.id)
    assert {one.name for one in state.iterdir()} == before
    assert list((state / "files").iterdir()) == []


def test_what_is_too_long_is_refused(server: Server, client: OpenAI, state: Path) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("x", b"x" * 3_000_000), purpose="batch")
    assert caught.value.status_code == 413
    # One that does not say how long it is, and one that lies about it.
    form = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
        b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    )
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    body = b"%x\r\n%s\r\n" % (len(form), form) + chunk * 40 + b"0\r\n\r\n"
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n"
    head += "Connection: close\r\n\r\n"
    assert b" 413 " in raw(server, head.encode(), body).partition(b"\r\n")[0]
    is_error(request(server, "POST", "/v1/batches", b"x", **JSON, Content_Length="9" * 15), 413)
    is_error(request(server, "POST", "/v1/batches", b" " * 2_000_000, **JSON), 413)
    assert list((state / "files").iterdir()) == []


def test_forms_that_are_none(server: Server, state: Path) -> None:
    kind = {"Content_Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nabc\r\n'
    purpose = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    for body, headers in (
        (b"", kind),
        (b"no boundary", kind),
        (part + purpose, {"Content_Type": "multipart/form-data"}),
        (part + b"--b--\r\n", kind),
        (purpose + b"--b--\r\n", kind),
        (part * 3 + purpose + b"--b--\r\n", kind),
        (purpose * 50 + part + b"--b--\r\n", kind),
        (purpose + b"--b\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--b--\r\n", kind),
        (purpose + part.replace(b"abc", b"") + b"--b--\r\n", kind),
        (b"purpose=batch&file=abc", {"Content_Type": "application/x-www-form-urlencoded"}),
    ):
        is_error(request(server, "POST", "/v1/files", body, **headers), 400)
    # Cut off in the middle: nothing stays.
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n"
    raw(server, head.encode(), purpose + part, hang_up=True)
    assert list((state / "files").iterdir()) == []


def test_no_http_and_no_such_thing(server: Server) -> None:
    for data in (b"\x16\x03\x01\x00\xff" * 20, b"GET\r\n\r\n", b"x" * 200_000, b"\r\n" * 50, b""):
        raw(server, data, hang_up=True)
    head = b"GET /v1/files HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n"
    assert b" 200 " not in raw(server, head, hang_up=True).partition(b"\r\n")[0]
    is_error(request(server, "GET", "/"), 404)
    is_error(request(server, "GET", "/v1/files/"), 404)
    is_error(request(server, "GET", "/nothing", Host="[::1"), 404)
    is_error(request(server, "GET", "/v1/chat/completions"), 404)
    is_error(request(server, "PUT", "/v1/files"), 405)
    for query in ("limit=0", "limit=x", "limit=99999999999", "order=up", "after=x", "limit=-1"):
        is_error(request(server, "GET", f"/v1/files?{query}"), 400)
    is_error(request(server, "GET", "/v1/batches?limit=101"), 400)


def test_requests_are_named_on_stderr(server: Server) -> None:
    request(server, "GET", "/v1/files/%1b%5b31m")
    line = server.wait_for(r"GET /v1/files/.*31m 404 ")[0]
    assert line.isprintable()


def test_too_many_requests_in_a_file(client: OpenAI) -> None:
    batch = wait(client, create(client, [row(f"{i}", "x") for i in range(21)]))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(one.code, one.line) for one in batch.errors.data or []] == [("too_many_tasks", 21)]


def test_hazards_of_lines(client: OpenAI) -> None:
    bad = [
        '{"a":' * 5000,
        '{"custom_id": "a", "custom_id": "b"}',
        '{"custom_id": NaN}',
        "\x85",
        "[]",
    ]
    batch = wait(client, create(client, [row("x", "x"), *bad]))
    assert batch.errors is not None
    assert [one.line for one in batch.errors.data or []] == [2, 3, 4, 5, 6]
    packed = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
    file = client.files.create(file=("x.gz", packed), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert wait(client, batch).status == "failed"


def test_a_separator_that_is_none_stays_in_its_row(client: OpenAI) -> None:
    batch = wait(client, create(client, [row("x\u2028y", "a\u0085b\u2028c", max_tokens=1)]))
    assert list(lines(client, batch.output_file_id)) == ["x\u2028y"]


def test_who_queues_too_much_is_told_when_to_try_again(server: Server, client: OpenAI) -> None:
    rows = [row(f"{i}", "x", max_tokens=4000, ignore_eos=True) for i in range(10)]
    batches = [create(client, rows), create(client, rows)]
    with pytest.raises(openai.RateLimitError) as caught:
        create(client, rows)
    assert caught.value.code == "queue_full"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    # The official client waits by itself for as long as it is told to, and then finds a place.
    with server.client(retries=3) as patient:
        freeing = threading.Timer(0.5, client.batches.cancel, [batches[0].id])
        freeing.start()
        third = create(patient, [row("x", "x", max_tokens=1)])
        freeing.join()
    client.batches.cancel(batches[1].id)
    ends = [wait(client, batch).status for batch in (*batches, third)]
    assert ends == ["cancelled", "cancelled", "completed"]


def test_connections_that_say_nothing(server: Server, client: OpenAI) -> None:
    """Others are turned away while they are there, and not longer."""
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        assert request(server, "GET", "/v1/models")[0] == 503
    until = time.monotonic() + 20
    while request(server, "GET", "/v1/models")[0] != 200 and time.monotonic() < until:
        time.sleep(0.1)
    assert client.models.list().data[0].id == "tiny"


def test_without_a_key_no_browser_page_and_a_full_disk(model: Path, tmp_path: Path) -> None:
    # On a disk that takes no file of more than 512 KB.
    state = tmp_path / "state"
    with serving(model, state, key=False, shell="ulimit -f 1024;") as open_server:
        port = open_server.port
        assert request(open_server, "GET", "/v1/models", key="", Host=f"localhost:{port}")[0] == 200
        assert request(open_server, "GET", "/v1/models", key="", Host="[::1]:1")[0] == 200
        for headers in (
            {"Host": "evil.example"},
            {"Host": f"127.0.0.1.evil.example:{port}"},
            {"Host": ""},
            {"Origin": "http://evil.example"},
        ):
            is_error(request(open_server, "GET", "/v1/models", key="", **headers), 403)
        kind = {"Content_Type": "text/plain"}
        is_error(request(open_server, "POST", "/v1/batches", b"{}", key="", **kind), 400)
        with open_server.client(key="any") as client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.files.create(file=("x", b"x" * 2_000_000), purpose="batch")
            assert caught.value.status_code == 507
            assert list((state / "files").iterdir()) == []
            batch = wait(client, create(client, [row("x", "x", max_tokens=1)]))
            assert batch.status == "completed"
        assert open_server.end() == 0


def test_upload_is_kept_whole(client: OpenAI) -> None:
    data = bytes(range(256)) * 3000
    file = client.files.create(file=("x", data), purpose="batch")
    assert client.files.content(file.id).content == data
    assert upload(client, [row("x", "x")]) != file.id
