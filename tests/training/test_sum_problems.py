"""The sums task: worked answers, the checker, the law of lengths, prompts of the executor."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "examples" / "prompts" / "reasoning-200.jsonl"


def load(path: Path) -> ModuleType:
    """A module by its file: training and examples are folders of scripts, not packages."""
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


task = load(ROOT / "training" / "task.py")
check_answers = load(ROOT / "examples" / "check_answers.py")
term_lists = st.lists(st.integers(task.LOW_TERM, task.HIGH_TERM), min_size=1, max_size=100)


@given(term_lists)
def test_worked_answer_is_right_and_every_step_adds_up(terms: list[int]) -> None:
    problem = task.Problem(terms=tuple(terms))
    assert task.is_right(terms, problem.answer)
    *steps, final = problem.answer.split("\n")
    assert len(steps) == len(terms)
    assert int(final.removeprefix("=")) == sum(terms)
    for i, step in enumerate(steps):
        assert step[:2] == task.key(i)
        assert int(step[2:4]) == terms[i]
        assert int(step[:4:-1]) == sum(terms[: i + 1])
    assert problem.answer.isascii()
    assert len(problem.answer) + 1 <= task.MAX_TOKENS


@given(term_lists, st.integers(1, 9))
def test_another_number_is_wrong(terms: list[int], error: int) -> None:
    answer = task.Problem(terms=tuple(terms)).answer
    assert not task.is_right(terms, f"{answer[:-4]}{sum(terms) + error:04d}")
    assert not task.is_right(terms, answer[:-5])
    assert not task.is_right(terms, answer + "\n")


@given(st.text(max_size=30))
def test_checkers_take_any_text(text: str) -> None:
    task.read_total(text)
    check_answers.final_number(text)


def test_keys_are_different() -> None:
    keys = [task.key(i) for i in range(task.MAX_TERMS)]
    assert len(set(keys)) == task.MAX_TERMS
    assert keys[:2] + keys[24:26] == ["aa", "ab", "az", "ba"]


@pytest.mark.parametrize("terms", [(), (9, 50), (50, 100), (50,) * 677])
def test_impossible_problems_are_refused(terms: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="terms"):
        task.Problem(terms=terms)


def test_most_answers_are_short_and_some_are_very_long() -> None:
    drawn = itertools.islice(task.problems(7, held_out=True), 3000)
    lengths = sorted(len(problem.answer) + 1 for problem in drawn)
    assert 30 <= lengths[1500] <= 50
    assert lengths[2850] > 5 * lengths[1500]
    assert lengths[-1] > 800
    generator = random.Random(3)
    sizes = [task.num_terms(generator) for _ in range(3000)]
    assert min(sizes) == task.MIN_TERMS
    assert max(sizes) <= task.MAX_TERMS


def test_training_and_held_out_problems_never_meet_and_follow_the_seed() -> None:
    train = set(itertools.islice(task.problems(1, held_out=False), 2000))
    unseen = set(itertools.islice(task.problems(1, held_out=True), 500))
    assert not train & unseen
    again = list(itertools.islice(task.problems(1, held_out=True), 20))
    assert again == list(itertools.islice(task.problems(1, held_out=True), 20))


def test_shipped_prompts_are_what_the_command_prints() -> None:
    command = [sys.executable, str(ROOT / "training" / "task.py"), "--count", "200"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == PROMPTS.read_text(encoding="utf-8")


def test_shipped_prompts_are_unseen_different_and_solvable() -> None:
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    questions = [row["messages"][0]["content"] for row in rows]
    assert len(set(questions)) == len(rows) == 200
    for row, question in zip(rows, questions, strict=True):
        terms = [int(word[2:4]) for word in question.removeprefix("Add ").split()]
        problem = task.Problem(terms=tuple(terms))
        assert problem.question == question
        assert problem.held_out
        assert (row["expected"], row["num_terms"]) == (str(problem.total), len(terms))


def answers_of(rows: list[dict], texts: list[str]) -> list[dict]:
    """Output objects as the executor writes them."""
    return [
        {
            "custom_id": row["custom_id"],
            "response": {
                "body": {
                    "choices": [
                        {"message": {"content": text}, "finish_reason": "stop"},
                    ],
                    "usage": {"completion_tokens": len(text) + 1},
                }
            },
            "error": None,
        }
        for row, text in zip(rows, texts, strict=True)
    ]


def write_lines(path: Path, values: list[dict]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.mark.parametrize(("num_wrong", "code"), [(0, 0), (1, 0), (2, 1)])
def test_check_answers_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_wrong: int, code: int
) -> None:
    drawn = list(itertools.islice(task.problems(5, held_out=True), 20))
    rows = [task.prompt_row(i, problem) for i, problem in enumerate(drawn)]
    texts = [problem.answer for problem in drawn]
    texts[:num_wrong] = ["no idea"] * num_wrong
    prompts = write_lines(tmp_path / "prompts.jsonl", rows)
    answers = write_lines(tmp_path / "answers.jsonl", answers_of(rows, texts))
    assert check_answers.main([str(prompts), str(answers)]) == code
    assert f"right     {20 - num_wrong} of 20" in capsys.readouterr().out


def test_check_answers_wants_files_that_belong_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = list(itertools.islice(task.problems(5, held_out=True), 3))
    rows = [task.prompt_row(i, problem) for i, problem in enumerate(drawn)]
    prompts = write_lines(tmp_path / "prompts.jsonl", rows)
    answers = write_lines(tmp_path / "answers.jsonl", answers_of(rows[:2], ["=1", "=2"]))
    assert check_answers.main([str(prompts), str(answers)]) == 2
    assert "no answer to 'sum-0002'" in capsys.readouterr().err
    refused = [{"custom_id": row["custom_id"], "response": None, "error": {}} for row in rows]
    answers = write_lines(tmp_path / "refused.jsonl", refused)
    assert check_answers.main([str(prompts), str(answers)]) == 1
    assert check_answers.main([str(tmp_path / "absent"), str(answers)]) == 2
