"""Every number that --set takes, far out of range: a run that works or one line, never a crash."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from batchgen.cli import main
from batchgen.cost.efficiency import Efficiency, efficiency_of, refuse_constants
from batchgen.errors import UserError
from batchgen.planning import PlanOptions
from batchgen.policy.base import OrderPart, Part
from batchgen.policy.options import kinds_of, option, range_of, read_config
from batchgen.policy.presets import PARTS, part_class

VALUES = ("nan", "inf", "-inf", "-1", "0", "1", "2", "0.5", "1e308", "1e-308")
HUGE = (str(2**31), str(2**62), str(2**70), "9" * 400, "-" + "9" * 400, "9" * 5000)


def numbers(config: type[Any]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(config) if {"int", "float"} & set(kinds_of(f))]


OPTIONS = [("plan", "", field) for field in numbers(PlanOptions)] + [
    (slot, part, field)
    for slot, parts in PARTS.items()
    for part in parts
    for field in numbers(part_class(slot, part).Config)
]


def test_every_number_has_a_range_and_a_default_in_it() -> None:
    assert len(OPTIONS) > 20
    for slot, part, field in OPTIONS:
        least, most = field.metadata["least"], field.metadata["most"]
        assert least < most, (slot, part, field.name)
        assert field.default is None or least <= field.default <= most
        assert range_of(field) == f"from {least} to {most}"


@pytest.mark.parametrize(
    ("slot", "part", "field"), OPTIONS, ids=lambda v: v if isinstance(v, str) else v.name
)
def test_any_number_runs_or_is_one_line(
    slot: str,
    part: str,
    field: dataclasses.Field[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"prompt_tokens": 3000 // n, "output_tokens": 40 * n} for n in range(1, 9)]
    trace = tmp_path / "t.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["sim", "--trace", str(trace), "--model", "llama-3.1-8b", "--gpus", "2", "--json"]
    args += ["--layout", "dp2"]
    args += ["--set", f"{slot}.part={part}"] if part else []
    args += ["--oracle"] if part and "lengths" in part_class(slot, part).needs else []
    least, most = field.metadata["least"], field.metadata["most"]
    ran = 0
    for text in (*VALUES, *HUGE, str(least), str(most)):
        inside = least <= float(text) <= most and ("int" not in kinds_of(field) or text.isdigit())
        code = main([*args, "--set", f"{slot}.{field.name}={text}"])
        out, err = capsys.readouterr()
        assert code in (0, 2), (text, err)
        if code:
            assert (out, err.count("\n")) == ("", 1), err
            assert len(err) < 400, err
            named = f"--set {slot}.{field.name}=" in err and range_of(field) in err
            assert named or inside, err  # inside: a size that this machine or layout cannot take
        else:
            assert inside, text
            ran += 1
    assert ran, "nothing in the range ran"


class Mine(OrderPart):
    """A part of somebody's own."""

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        weight: float = 1.0
        every: int = option(8, least=1)
        share: float = option(0.5, most=1)


def test_parts_of_ones_own_may_declare_ranges_and_are_finite_without() -> None:
    def refused(**texts: str) -> str:
        with pytest.raises(UserError) as caught:
            read_config("order", "mine", Mine.Config, {}, texts)
        return str(caught.value)

    assert refused(weight="nan") == (
        "--set order.weight=nan: not a finite number; give a finite number; the default is 1.0"
    )
    assert refused(every="0") == (
        "--set order.every=0: out of range; give an integer of at least 1; the default is 8"
    )
    assert refused(share="1.5").endswith("a finite number of at most 1; the default is 0.5")
    assert refused(every="x").startswith("--set order.every=x: not a valid int; give an integer")
    config = read_config("order", "mine", Mine.Config, {"every": 3}, {"weight": "-1e300"})
    assert (config.every, config.weight) == (3, -1e300)


@pytest.mark.parametrize("options", [{"every": 0}, {"weight": float("inf")}, {"evrey": 3}])
def test_options_of_a_preset_are_checked_too(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^preset option order.{next(iter(options))}"):
        read_config("order", "mine", Mine.Config, options, {})


def test_constants_of_costs_are_options_too() -> None:
    assert efficiency_of({}) == Efficiency()
    assert efficiency_of({"cost.step_s": "0.01"}).step_s == 0.01
    mine = efficiency_of({"cost.step_s": "0.01"}, {"step_s": 0.5, "engine": 0.9})
    assert (mine.step_s, mine.engine) == (0.01, 0.9)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("cost.gemm", "1", "costs have no such constant; their constants: grouped"),
        ("cost.steps", "1", "costs have no such constant"),
        ("cost.engine", "0", "out of range; give a finite number from 0.01 to 1"),
        ("cost.step_s", "nan", "not a finite number"),
        ("cost.step_s", "fast", "not a valid float"),
    ],
)
def test_constants_that_are_none_are_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        efficiency_of({key: text})


def test_constants_are_refused_where_they_change_nothing() -> None:
    with pytest.raises(UserError, match=r"--set cost\.step_s: measured"):
        refuse_constants({"plan.depth": "2", "cost.step_s": "1"}, "measured")
    refuse_constants({"plan.depth": "2"}, "measured")
