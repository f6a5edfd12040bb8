"""A server that is killed or stopped goes on where it was, to the same answers."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from openai import OpenAI
from servers import Server, create, ended, lines, row, serving, wait

from batchgen.cli import main

ROWS = [row(f"short{i}", f"say {i}", max_tokens=3) for i in range(6)]
ROWS += [row(f"long{i}", f"say {i}", max_tokens=1500, ignore_eos=True) for i in range(4)]
ROWS += [row("bad", "x", temperature=-5)]


def test_killed_and_stopped_in_the_middle(model: Path, tmp_path: Path) -> None:
    """One batch is in its middle, one waits; both end as if nothing had been."""
    state = tmp_path / "state"
    with serving(model, state) as server:
        client = server.client()
        first = create(client, ROWS)
        second = create(client, ROWS[:3])
        wait(client, first, lambda one: ended(one) >= 7)
        server.end(signal.SIGKILL)
    # What a kill in the middle of an upload leaves.
    (state / "files" / ".incoming-0123456789abcdef01234567").write_bytes(b"half")
    (state / "files" / ("file-" + "0" * 24)).write_bytes(b"nobody's")
    with serving(model, state) as server:
        wait(client_of(server), first, lambda one: ended(one) >= 7)
        assert server.end(signal.SIGTERM) == 3
        assert server.said[-1] == (
            f"stopped: 2 batches are unfinished, in {state}; the same command goes on with them\n"
        )
    with serving(model, state) as server:
        client = client_of(server)
        first, second = wait(client, first), wait(client, second)
        assert (first.status, second.status) == ("completed", "completed")
        whole = wait(client, create(client, ROWS))
        assert bytes_of(client, first.output_file_id) == bytes_of(client, whole.output_file_id)
        assert bytes_of(client, first.error_file_id) == bytes_of(client, whole.error_file_id)
        assert bytes_of(client, first.output_file_id).count(b"\n") == len(ROWS) - 1
        assert first.usage == whole.usage
        assert len(lines(client, second.output_file_id)) == 3
        kept = {file.id for file in client.files.list()}
        assert {one.name for one in (state / "files").iterdir()} == kept
        assert list((state / "batches").iterdir()) == []
        assert server.end() == 0


def client_of(server: Server) -> OpenAI:
    return server.client(retries=3)


def bytes_of(client: OpenAI, name: str | None) -> bytes:
    assert name is not None
    return client.files.content(name).content


def test_another_model_and_other_options(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    with serving(model, state) as server:
        client = server.client()
        batch = create(client, ROWS[5:10])
        wait(client, batch, lambda one: ended(one) >= 1)
        assert server.end() == 3
    argv = ["serve", "--model", str(model), "--state", str(state), "--port", "0"]
    assert main([*argv, "--served-model-name", "other"]) == 2
    assert "is for the model 'tiny', which is not served" in capsys.readouterr().err
    # Other options: what was achieved is of another job, and it begins anew.
    with serving(model, state, "--served-model-name", "tiny", "--max-tokens", "7") as server:
        client = server.client()
        batch = wait(client, batch)
        assert batch.status == "completed"
        assert len(lines(client, batch.output_file_id)) == 5
        server.wait_for("begins anew: .* was begun with another max tokens")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments(model: Path, tmp_path: Path) -> None:
    """Also while lines are checked, between turns and while files are written."""
    state, rng = tmp_path / "state", random.Random()
    batches: list[str] = []
    for _ in range(15):
        with serving(model, state, "--slice", "0.2") as server:
            client = server.client()
            rows = ROWS[: rng.randrange(1, len(ROWS))]
            batches.append(create(client, rows).id)
            time.sleep(rng.choice([0.02, 0.2, 2.0, 8.0]) * rng.random())
    with serving(model, state) as server:
        client = server.client()
        whole = wait(client, create(client, ROWS))
        want = lines(client, whole.output_file_id) | lines(client, whole.error_file_id)
        for name in batches:
            batch = wait(client, client.batches.retrieve(name))
            assert batch.status == "completed", batch
            found = lines(client, batch.output_file_id) | lines(client, batch.error_file_id)
            assert batch.request_counts is not None
            assert len(found) == batch.request_counts.total
            for row_name, one in found.items():
                response = (one["response"] or {}).get("body", {}).get("choices")
                other = (want[row_name]["response"] or {}).get("body", {}).get("choices")
                assert response == other
        assert list((state / "batches").iterdir()) == []
