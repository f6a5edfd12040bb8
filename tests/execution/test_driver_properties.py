"""The driver under every preset: rows end, answers stand, pages in use are pages leased."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exec_cases import PRESETS, Case, Outcome, check_answer, cost_of, drive_watched, prompt, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchgen.errors import UserError
from batchgen.exec.init import init_model
from batchgen.exec.job import CAPABILITIES
from batchgen.exec.prepare import prepare
from batchgen.memory.pool import pages_for
from batchgen.policy.presets import PARTS, build_policy, find_preset

ARCHS = ("llama", "qwen3", "qwen3-moe", "deepseek-v3", "gpt-oss")
SPAN_PS = 2 * 10**11
"""About as long as one of these cases takes on the stub clock."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("driver")
    return {arch: init_model(folder / arch, arch, "tiny", seed=3) for arch in ARCHS}


def compositions() -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every preset, and with every single slot swapped for every part that one device can run."""
    found: list[tuple[str, tuple[tuple[str, str], ...]]] = [(name, ()) for name in PRESETS]
    for name in PRESETS:
        for slot, parts in PARTS.items():
            for part in parts:
                swap = {f"{slot}.part": part}
                try:
                    build_policy(find_preset(name), swap, CAPABILITIES)
                except UserError:
                    continue
                found.append((name, tuple(swap.items())))
    return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    policy, overrides = draw(st.sampled_from(compositions()))
    rows = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 48)), min_size=1, max_size=9))
    times = st.one_of(st.just(0), st.integers(0, SPAN_PS))
    return Case(
        policy=policy,
        overrides=(*overrides, ("plan.prefix_cache", draw(st.sampled_from(("true", "false"))))),
        rows=tuple(rows),
        arrivals_ps=tuple(draw(times) for _ in rows),
        hbm_pages=draw(st.integers(2, 40)),
        host_pages=draw(st.sampled_from((0, 6, 20, 200))),
        page=draw(st.sampled_from((4, 8))),
        boundary=draw(st.sampled_from((4, 8, 16))),
        budget=draw(st.sampled_from((9, 32, 128))),
        seqs=draw(st.integers(1, 8)),
        depth=draw(st.sampled_from((1, 2))),
        cancels=tuple(
            draw(
                st.lists(
                    st.tuples(st.integers(0, SPAN_PS), st.integers(0, len(rows) - 1)), max_size=2
                )
            )
        ),
    )


@settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_rows_end_with_their_own_answers_and_every_page_is_accounted_for(
    case: Case, models: dict[str, Path], tmp_path: Path
) -> None:
    model = models["qwen3"]
    outcome = run(case, model, tmp_path)
    check_outcome(case, outcome, model)


def check_outcome(case: Case, outcome: Outcome, model: Path) -> None:
    """Every row ended with its own answer, and pages in use were pages leased."""
    assert set(outcome.reasons) == set(range(len(case.rows)))
    for row, (number, budget) in enumerate(case.rows):
        reason, tokens = outcome.reasons[row], outcome.tokens[row]
        check_answer(model, number, tokens, budget)
        if reason == "capacity":
            worst = pages_for(len(prompt(number)) + budget, case.page)
            assert worst > case.hbm_pages
        elif reason == "length":
            assert len(tokens) == budget
        elif reason == "stop":
            assert tokens[-1] in outcome.prepared.tokenizer.eos_token_ids
        else:
            assert reason == "cancelled"
        produced = int(outcome.prepared.table.produced[row])
        assert reason in ("cancelled", "capacity") or produced == len(tokens)
    for leased, used, host_leased, host_used, ahead in outcome.held:
        assert used <= leased
        assert host_used <= host_leased
        if not ahead:
            assert used == leased


@pytest.mark.parametrize("arch", ARCHS)
def test_answers_are_the_same_under_every_preset(
    arch: str, models: dict[str, Path], tmp_path: Path
) -> None:
    rows = tuple((number, 32) for number in range(10))
    early = 0
    for policy, hbm, host in (
        ("static", 24, 0),
        ("orca", 200, 0),
        ("vllm", 24, 0),
        ("batchgen", 24, 200),
    ):
        case = Case(policy=policy, rows=rows, hbm_pages=hbm, host_pages=host)
        outcome = run(case, models[arch], tmp_path)
        for row in range(10):
            check_answer(models[arch], row, outcome.tokens[row], 32)
        early = sum(reason == "stop" for reason in outcome.reasons.values())
    assert early >= 2  # a good part of the rows ends by itself


def test_scarce_memory_suspends_or_recomputes(models: dict[str, Path], tmp_path: Path) -> None:
    rows = tuple((number, 48) for number in range(12))
    model, scarce = models["qwen3"], {"rows": rows, "hbm_pages": 24, "ignore_eos": True}
    swapped = run(Case(policy="batchgen", host_pages=300, **scarce), model, tmp_path)
    table = swapped.prepared.table
    purposes = [a.purpose for _, _, actions in swapped.entries for a in actions if _is_copy(a)]
    assert table.suspensions.sum() > 5
    assert table.recomputed.sum() == 0
    assert {"suspend", "restore"} <= set(purposes)
    recomputed = run(Case(policy="vllm", **scarce), model, tmp_path)
    table = recomputed.prepared.table
    assert table.preemptions.sum() > 5
    assert table.recomputed.sum() > 100
    assert table.suspensions.sum() == 0
    for outcome in (swapped, recomputed):
        assert set(outcome.reasons.values()) == {"length"}
        for row in range(12):
            check_answer(model, row, outcome.tokens[row], 48, stops=frozenset())


def test_batchgen_without_a_host_recomputes(models: dict[str, Path], tmp_path: Path) -> None:
    rows = tuple((number, 48) for number in range(10))
    case = Case(policy="batchgen", rows=rows, hbm_pages=24, ignore_eos=True)
    outcome = run(case, models["qwen3"], tmp_path)
    assert set(outcome.reasons.values()) == {"length"}
    assert outcome.prepared.table.preemptions.sum() > 0
    for row in range(10):
        check_answer(models["qwen3"], row, outcome.tokens[row], 48, stops=frozenset())


def test_a_prompt_that_was_not_streamed_is_not_on_the_host(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """A host that was too small for streaming has room again when later prompts come."""
    lengths = (69, 3, 52, 33, 3, 29, 15, 46, 20, 41, 62, 23, 15)
    budgets = (41, 47, 33, 50, 32, 11, 35, 15, 27, 18, 33, 3, 7)
    case = Case(
        policy="batchgen",
        rows=tuple(zip(lengths, budgets, strict=True)),
        hbm_pages=34,
        host_pages=26,
        boundary=5,
        budget=7,
        seqs=6,
    )
    job = case.job(models["qwen3"], tmp_path)
    lines = [
        {"prompt": [7] * length, "max_tokens": budget, "ignore_eos": True}
        for length, budget in case.rows
    ]
    job.input.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = drive_watched(prepare(job), cost=cost_of(models["qwen3"]))
    assert set(outcome.reasons.values()) == {"length"}


def test_the_record_adds_up(models: dict[str, Path], tmp_path: Path) -> None:
    case = Case(policy="vllm", rows=tuple((number, 30) for number in range(8)), hbm_pages=40)
    outcome = run(case, models["llama"], tmp_path)
    driver = outcome.driver.record
    steps = {name: list(column) for name, column in driver.steps.items()}
    assert sum(steps["passes"]) == len(driver.passes["duration_ps"])
    assert sum(steps["finished"]) == len(case.rows)
    assert sum(steps["duration_ps"]) == sum(driver.passes["duration_ps"])
    assert sum(steps["output_tokens"]) == sum(map(len, outcome.tokens.values()))
    prompts, table = sum(len(prompt(number)) for number, _ in case.rows), outcome.prepared.table
    again = sum(steps["prompt_tokens"]) - prompts - int(table.recomputed.sum())
    # A row that decoded also prefills its newest token, which had no KV when it was preempted.
    assert 0 <= again <= int(table.preemptions.sum())
    assert table.preemptions.sum() > 0
    assert (driver.first_token_ps >= 0).all()
    assert (driver.first_token_ps <= driver.end_ps).all()


def _is_copy(action: object) -> bool:
    return type(action).__name__ == "Copy"
