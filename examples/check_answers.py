"""Compare the answers of `batchgen exec` with the `expected` column of its input. Runs no model.

    batchgen exec --model models/sums-moe -i examples/prompts/reasoning-200.jsonl -o answers.jsonl
    python examples/check_answers.py examples/prompts/reasoning-200.jsonl answers.jsonl

An answer is right when its last line is "=" and the expected number. Exit code 0 when at least
`--at-least` of the rows are right, 1 when fewer are, 2 when the files do not belong together.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE_BANDS = ((2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100))  # terms of a problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row, judged. `num_tokens` counts the stop token; 0 for a row without an answer."""

    custom_id: str
    num_terms: int
    num_tokens: int
    finish_reason: str
    right: bool


def final_number(text: str) -> int | None:
    """The number after "=" on the last line of an answer, or None."""
    last = text.strip().rsplit("\n", 1)[-1]
    digits = last.removeprefix("=")
    return int(digits) if last.startswith("=") and digits.isascii() and digits.isdigit() else None


def judge(row: dict[str, Any], answer: dict[str, Any]) -> Verdict:
    """Judge one output object against its input row. An error object counts as wrong."""
    body = (answer.get("response") or {}).get("body") or {}
    choice = (body.get("choices") or [{}])[0]
    text = (choice.get("message") or {}).get("content") or ""
    return Verdict(
        custom_id=row["custom_id"],
        num_terms=int(row.get("num_terms", 0)),
        num_tokens=int((body.get("usage") or {}).get("completion_tokens", 0)),
        finish_reason=str(choice.get("finish_reason", "error")),
        right=final_number(text) == int(row["expected"]),
    )


def judge_files(prompts: Path, answers: Path) -> list[Verdict]:
    """Judge every row of `prompts`. Raises ValueError for a row without answer or expectation."""
    by_id = {answer["custom_id"]: answer for answer in _read(answers)}
    verdicts = []
    for row in _read(prompts):
        if "expected" not in row or "custom_id" not in row:
            raise ValueError(f"{prompts}: a row has no 'expected' or no 'custom_id'")
        if row["custom_id"] not in by_id:
            raise ValueError(f"{answers}: no answer to {row['custom_id']!r}")
        verdicts.append(judge(row, by_id[row["custom_id"]]))
    if not verdicts:
        raise ValueError(f"{prompts}: holds no rows")
    return verdicts


def quantile(values: list[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(verdicts: list[Verdict]) -> str:
    """A few lines for people: accuracy, lengths, accuracy by number of terms, what went wrong."""
    right = sum(verdict.right for verdict in verdicts)
    tokens = [verdict.num_tokens for verdict in verdicts]
    stopped = sum(verdict.finish_reason == "stop" for verdict in verdicts)
    lines = [
        f"right     {right} of {len(verdicts)} ({right / len(verdicts):.1%})",
        f"stopped   {stopped} by themselves",
        f"answers   p50 {quantile(tokens, 0.5)}, p95 {quantile(tokens, 0.95)}, "
        f"max {max(tokens)} tokens, {sum(tokens)} together",
    ]
    for low, high in SIZE_BANDS:
        band = [verdict.right for verdict in verdicts if low <= verdict.num_terms <= high]
        if band:
            lines.append(f"terms {low:>3}-{high:<3}  {sum(band)} of {len(band)}")
    wrong = [verdict.custom_id for verdict in verdicts if not verdict.right]
    if wrong:
        lines.append(f"wrong     {', '.join(wrong[:20])}{' ...' if len(wrong) > 20 else ''}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare answers with what was expected.")
    parser.add_argument("prompts", type=Path, help="input of batchgen exec, with 'expected'")
    parser.add_argument("answers", type=Path, help="output of batchgen exec")
    parser.add_argument("--at-least", type=float, default=0.95, help="share that must be right")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        verdicts = judge_files(options.prompts, options.answers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"check_answers: {error}", file=sys.stderr)
        return 2
    accuracy = sum(verdict.right for verdict in verdicts) / len(verdicts)
    if options.json:
        tokens = [verdict.num_tokens for verdict in verdicts]
        value = {"rows": len(verdicts), "accuracy": accuracy, "max_tokens": max(tokens)}
        value |= {"p50_tokens": quantile(tokens, 0.5), "p95_tokens": quantile(tokens, 0.95)}
        print(json.dumps(value))
    else:
        print(report(verdicts))
    return 0 if accuracy >= options.at_least else 1


def _read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: every line must be a JSON object")
    return rows


if __name__ == "__main__":
    sys.exit(main())
