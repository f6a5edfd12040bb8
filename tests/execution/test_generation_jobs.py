"""Generation options of whole jobs, from the input row to the output line, under every preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchgen.cli import main
from batchgen.cli.agreement import compare_backends
from batchgen.errors import UserError
from batchgen.exec.answers import Answers
from batchgen.exec.generation import sampling_defaults
from batchgen.exec.init import init_model
from batchgen.exec.job import ExecJob
from batchgen.exec.rows import Stage
from batchgen.exec.run import execute
from batchgen.exec.tokenizer import Tokenizer
from batchgen.job.rows import JobRow
from batchgen.job.samples import samples
from batchgen.job.sampling import Sampling, SamplingDefaults

WAYS: list[tuple[str, dict[str, str], int, int]] = [
    ("static", {}, 200, 0),
    ("orca", {}, 200, 0),
    ("vllm", {"plan.token_budget": "13", "plan.max_num_seqs": "3"}, 40, 0),
    ("vllm", {"plan.prefix_cache": "true"}, 32, 0),
    ("batchgen", {"plan.depth": "2"}, 30, 400),
    ("batchgen", {"plan.prefix_cache": "true", "plan.token_budget": "64"}, 30, 0),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("generation") / "m", "qwen3", "tiny", seed=3)


@pytest.fixture(autouse=True)
def _one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers carry the time at which their job began."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


def job_rows() -> list[dict[str, Any]]:
    generator = np.random.default_rng(5)
    options: list[dict[str, Any]] = [
        {"temperature": 1, "n": 3, "logprobs": 2, "ignore_eos": True},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "n": 2, "stop": ["e", "%", "A"]},
        {"frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.2},
        {"temperature": 1.5, "min_p": 0.05, "min_tokens": 9, "stop_token_ids": [*range(64)]},
        {"logit_bias": {"65": 100, "66": 99.5}, "frequency_penalty": 0.5, "stop": "BA"},
        {"logprobs": 5, "min_tokens": 3},
        {"temperature": 2, "frequency_penalty": 2, "n": 4, "seed": 11},
        {},
    ]
    shared: list[int] = generator.integers(0, 256, 40).tolist()
    return [
        {
            "custom_id": f"r{number}",
            "prompt": [*shared[: 8 * (number % 6)], *generator.integers(0, 256, 9).tolist()],
            "max_tokens": int(generator.integers(9, 30)),
            **one,
        }
        for number, one in enumerate(options)
    ]


def answers(
    model: Path,
    folder: Path,
    rows: list[dict[str, Any]],
    way: tuple[str, dict[str, str], int, int] = WAYS[0],
    **more: Any,
) -> dict[str, Any]:
    """Output bodies by custom_id."""
    policy, overrides, hbm_pages, host_pages = way
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"plan.page_tokens": "8", "plan.boundary": "8"} | overrides
    job = ExecJob(
        model=model,
        input=folder / "in.jsonl",
        output=folder / "out.jsonl",
        policy=policy,
        overrides=tuple(sizes.items()),
        hbm_pages=hbm_pages,
        host_pages=host_pages,
        threads=1,
        force=True,
        **{"exact": True, **more},
    )
    execute(job)
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [row["custom_id"] for row in rows]
    assert all(line["error"] is None for line in lines), lines
    return {line["custom_id"]: line["response"]["body"] for line in lines}


def without_place(body: dict[str, Any]) -> dict[str, Any]:
    return body | {"id": None}


def test_answers_depend_on_the_row_alone(model: Path, tmp_path: Path) -> None:
    """Not on the preset, scarce memory, shared pages, depth, order of the rows, or neighbours."""
    rows = job_rows()
    expected = answers(model, tmp_path, rows)
    for way in WAYS[1:]:
        assert answers(model, tmp_path, rows, way) == expected, way
    backward = answers(model, tmp_path, rows[::-1], WAYS[2])
    for row in rows:
        name = row["custom_id"]
        assert without_place(backward[name]) == without_place(expected[name])
        alone = answers(model, tmp_path, [row])[name]
        assert without_place(alone) == without_place(expected[name])


def test_every_option_shows_in_the_answer(model: Path, tmp_path: Path) -> None:
    rows = job_rows()
    found = answers(model, tmp_path, rows)
    for row in rows:
        body = found[row["custom_id"]]
        choices, usage = body["choices"], body["usage"]
        assert [choice["index"] for choice in choices] == list(range(row.get("n", 1)))
        assert usage["prompt_tokens"] == len(row["prompt"])
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        for choice in choices:
            for stop in [row["stop"]] if isinstance(row.get("stop"), str) else row.get("stop", ()):
                assert stop not in choice["text"]
            logprobs = choice["logprobs"]
            assert (logprobs is None) == ("logprobs" not in row)
            if logprobs is not None:
                sizes = {len(column) for column in logprobs.values()}
                assert len(sizes) == 1
                for place, token in enumerate(logprobs["tokens"]):
                    best = logprobs["top_logprobs"][place]
                    assert best[token] == logprobs["token_logprobs"][place]
                    assert row["logprobs"] <= len(best) <= row["logprobs"] + 1
    assert found["r0"]["usage"]["completion_tokens"] == 3 * rows[0]["max_tokens"]
    assert len({choice["text"] for choice in found["r6"]["choices"]}) == 4
    assert found["r4"]["choices"][0]["finish_reason"] == "stop"
    assert set(found["r4"]["choices"][0]["text"]) <= {"A", "B"}


def test_the_first_sample_is_the_answer_of_one(model: Path, tmp_path: Path) -> None:
    row = {"custom_id": "a", "prompt": "Hello", "max_tokens": 20, "temperature": 1.0}
    one = answers(model, tmp_path, [row])["a"]["choices"]
    many = answers(model, tmp_path, [row | {"n": 5}])["a"]["choices"]
    assert many[0] == one[0]
    assert len({choice["text"] for choice in many}) == 5


def test_a_text_that_stops_cuts_the_answer_of_the_row_without_it(
    model: Path, tmp_path: Path
) -> None:
    """Sampled texts of bytes, half of them no UTF-8."""
    row = {"custom_id": "a", "prompt": "Hi", "max_tokens": 60, "temperature": 1, "ignore_eos": True}
    whole = answers(model, tmp_path, [row | {"logprobs": 0, "n": 8}])["a"]["choices"]
    stops = ["e", "1", "zz", "Q"]
    found = answers(model, tmp_path, [row | {"stop": stops, "n": 8}])["a"]
    cuts = 0
    for before, after in zip(whole, found["choices"], strict=True):
        text = before["text"]
        at = min((text.find(stop) for stop in stops if stop in text), default=-1)
        assert after["text"] == (text if at < 0 else text[:at])
        assert after["finish_reason"] == ("length" if at < 0 else "stop")
        cuts += at >= 0
    assert 0 < cuts < 8
    assert found["usage"]["completion_tokens"] < 8 * 60


def test_a_failing_sample_fails_the_row(model: Path, tmp_path: Path) -> None:
    row = JobRow(
        index=0,
        line=1,
        custom_id="a",
        kind="completion",
        model=None,
        prompt_ids=(1, 2),
        max_output=3,
        sampling=Sampling(),
        ignore_eos=False,
        num_samples=3,
    )
    stages = [Stage(given=[], produced=[65], reason="length")]
    kept: list[tuple[int, bytes, str]] = []
    found = Answers(lambda *one: kept.append(one), Tokenizer(model), "m")
    first, second, third = samples([row])
    found.ended(third, "device_error", "third", stages)
    found.ended(first, "length", None, stages)
    assert (found.done, found.errors) == (0, 0)
    found.ended(second, "capacity", "second", stages)
    assert (found.done, found.errors) == (0, 1)
    ((index, line, code),) = kept
    assert (index, code) == (0, "capacity")
    assert json.loads(line)["error"] == {"code": "capacity", "message": "second"}
    assert json.loads(line)["response"] is None


DEFAULTS: list[tuple[dict[str, Any] | None, SamplingDefaults]] = [
    (None, SamplingDefaults(temperature=1.0)),
    ({}, SamplingDefaults(temperature=1.0)),
    ({"do_sample": True}, SamplingDefaults(temperature=1.0)),
    ({"do_sample": False, "temperature": 0.7}, SamplingDefaults(temperature=0.0)),
    (
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01}
        | {"repetition_penalty": 1.05},
        SamplingDefaults(
            temperature=0.6, top_p=0.95, top_k=20, min_p=0.01, repetition_penalty=1.05
        ),
    ),
    ({"top_k": -1, "top_p": None, "temperature": 0}, SamplingDefaults(temperature=0.0)),
]


@pytest.mark.parametrize(("config", "expected"), DEFAULTS)
def test_defaults_are_the_checkpoints(
    config: dict[str, Any] | None, expected: SamplingDefaults, tmp_path: Path
) -> None:
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert sampling_defaults(tmp_path) == expected
    assert sampling_defaults(tmp_path, 0.25).temperature == 0.25
    assert sampling_defaults(tmp_path, 0.25).top_p == expected.top_p


@pytest.mark.parametrize(
    "config", [{"temperature": "hot"}, {"top_p": 2}, {"top_k": 1.5}, {"do_sample": 1}]
)
def test_defaults_that_cannot_be_name_file_and_field(
    config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        sampling_defaults(tmp_path)
    assert "\n" not in str(error.value)
    assert "generation_config.json" in str(error.value)
    assert next(iter(config)) in str(error.value)
    for temperature in (-1.0, float("inf"), float("nan"), 101.0):
        with pytest.raises(UserError, match="--temperature"):
            ExecJob(model=tmp_path, input=tmp_path, output=tmp_path, temperature=temperature)


def test_run_json_says_what_rows_got(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "Hello", "max_tokens": 12}\n')
    texts = []
    for number, more in enumerate(([], ["--temperature", "0"], ["--temperature", "1.5"])):
        out = tmp_path / str(number)
        command = ["exec", "--model", str(model), "-i", str(rows), "-o", str(out) + ".jsonl"]
        assert main([*command, "--threads", "1", "--out", str(out), *more]) == 0
        config = json.loads((out / "run.json").read_text())["config"]
        expected = 1.5 if number == 2 else 0.0
        assert config["sampling_defaults"]["temperature"] == expected
        assert set(config["sampling_defaults"]) == set(SamplingDefaults.__dataclass_fields__)
        texts.append(json.loads(Path(f"{out}.jsonl").read_text())["response"]["body"]["choices"])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("policy", ["static", "vllm", "batchgen"])
def test_samples_agree_and_replay(policy: str, model: Path, tmp_path: Path) -> None:
    """The scheduler's rows are samples: both backends and the replay see the same of them."""
    path = tmp_path / "in.jsonl"
    rows = job_rows()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = compare_backends(
        model, path, policy, rate=0.5, cancel=1, overrides=(("plan.prefix_cache", "true"),)
    )
    assert result["equal"], result
    assert result["rows"] == sum(row.get("n", 1) for row in rows)
    assert (result["adopted"] > 0) == (policy != "static")  # which begins all at once
    out = tmp_path / "run"
    command = ["exec", "--model", str(model), "-i", str(path), "-o", str(tmp_path / "o.jsonl")]
    command += ["--policy", policy, "--threads", "1", "--out", str(out), "--log", "full"]
    assert main(command) == 0
    assert main(["validate", "replay", str(out)]) == 0


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}-{way[2]}")
def test_options_hold_for_all_stages_of_a_body(
    way: tuple[str, dict[str, str], int, int], model: Path, tmp_path: Path
) -> None:
    """Bodies whose follow-ups hang on the answers: the same under every preset, with penalties of
    all stages, ends and log probabilities of each."""
    rows = job_rows()
    more = {"body": "exec_bodies:turns_by_id"}
    found = answers(model, tmp_path, rows, way, **more)
    assert found == answers(model, tmp_path, rows, **more)
    shown = [
        stage
        for row, body in zip(rows, found.values(), strict=True)
        for stage in (
            body["batchgen"].get("stages")
            or [s for choice in body["batchgen"]["choices"] for s in choice["stages"]]
        )
        if "stop" in row
    ]
    assert {stage["finish_reason"] for stage in shown} == {"stop", "length"}
