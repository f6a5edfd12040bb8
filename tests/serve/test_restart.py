"""A server that is killed or stopped goes on where it was, to the same answers."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from servers import Server, create, ended, lines, row, serving, wait

ROWS = [row(f"short{i}", f"say {i}", max_tokens=3) for i in range(6)]
ROWS += [row(f"long{i}", f"say {i}", max_tokens=1500, ignore_eos=True) for i in range(4)]
ROWS += [row("bad", "x", temperature=-5)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_in_the_middle(how: int, model: Path, tmp_path: Path) -> None:
    """One batch is in its middle, one waits; both end as if nothing had been."""
    state = tmp_path / "state"
    with serving(model, state) as server:
        client = server.client()
        first = create(client, ROWS)
        second = create(client, ROWS[:3])
        wait(client, first, lambda one: ended(one) >= 7)
        code = server.end(how)
        said = "".join(server.said)
    assert code == (3 if how == signal.SIGTERM else -9), said
    if how == signal.SIGTERM:
        assert said.splitlines()[-1] == (
            f"stopped: 2 batches are unfinished, in {state}; the same command goes on with them"
        )
    # What a kill in the middle of an upload leaves.
    (state / "files" / ".incoming-0123456789abcdef01234567").write_bytes(b"half")
    (state / "files" / ("file-" + "0" * 24)).write_bytes(b"nobody's")
    with serving(model, state) as server:
        client = server.client()
        assert client.batches.list().data[1].id == first.id
        first, second = wait(client, first), wait(client, second)
        assert (first.status, second.status) == ("completed", "completed")
        whole = wait(client, create(client, ROWS))
        names = first.output_file_id, whole.output_file_id
        killed, undisturbed = (client.files.content(name or "").content for name in names)
        assert killed == undisturbed
        assert killed.count(b"\n") == len(ROWS) - 1
        names = first.error_file_id, whole.error_file_id
        assert client.files.content(names[0] or "").content == (
            client.files.content(names[1] or "").content
        )
        assert first.usage == whole.usage
        assert len(lines(client, second.output_file_id)) == 3
        kept = {file.id for file in client.files.list()}
        assert {one.name for one in (state / "files").iterdir()} == kept
        assert list((state / "batches").iterdir()) == []
        assert server.end() == 0


def test_another_model_does_not_go_on_with_it(model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with serving(model, state) as server:
        client = server.client()
        batch = create(client, ROWS[5:10])
        wait(client, batch, lambda one: ended(one) >= 1)
        assert server.end() == 3
    with pytest.raises(AssertionError, match="is for the model 'tiny', which is not served"):
        Server(model, state, "--served-model-name", "other")
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
            assert batch.status == "completed"
            found = lines(client, batch.output_file_id) | lines(client, batch.error_file_id)
            assert batch.request_counts is not None
            assert len(found) == batch.request_counts.total
            for row_name, one in found.items():
                response = (one["response"] or {}).get("body", {}).get("choices")
                other = (want[row_name]["response"] or {}).get("body", {}).get("choices")
                assert response == other
        assert list((state / "batches").iterdir()) == []
