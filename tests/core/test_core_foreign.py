"""Parts of others: numpy answers are as good as plain ones, errors are one line with their name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from core_cases import Case, Row, run

from batchgen.errors import UserError
from batchgen.policy.admission import FitsNow
from batchgen.policy.base import OrderPart, Part, PlacementPart
from batchgen.policy.foreign import guarded
from batchgen.policy.options import read_config
from batchgen.policy.presets import PRESETS, build_policy, find_preset

ROWS = tuple(Row(prompt=5 + 7 * i % 11, budget=12, output=3 + 5 * i % 7) for i in range(14))
CASE = Case(preset="vllm", rows=ROWS, engines=3, ranks=2, hbm_pages=14, depth=2)
ROLES = Case(preset="vllm", rows=ROWS, engines=4, roles=("prefill", "prefill", "decode", "decode"))


class PlainOrder(OrderPart):
    keyed = True
    shares = (0.5, 0.5)

    def key(self, table: Any, row: int) -> Any:
        return int(table.prompt[row])

    def lane(self, table: Any, row: int) -> Any:
        return int(table.prompt[row] > 9)


class NumpyOrder(PlainOrder):
    def key(self, table: Any, row: int) -> Any:
        return table.prompt[row]

    def lane(self, table: Any, row: int) -> Any:
        return np.int8(table.prompt[row] > 9)


class PlainPlacement(PlacementPart):
    def work(self, table: Any, row: int) -> Any:
        return int(table.prompt[row])

    def place(self, cluster: Any, rows: Any) -> Any:
        works = [self.work(cluster.table, row) for row in rows]
        return list(zip(rows, cluster.loads.spread([int(work) for work in works]), strict=True))

    def choose(self, cluster: Any, row: int, engines: Any) -> Any:
        some = [*engines[:2], *reversed(engines)]
        return some[0] if some[0] in engines else None


class NumpyPlacement(PlainPlacement):
    def work(self, table: Any, row: int) -> Any:
        return table.prompt[row]

    def place(self, cluster: Any, rows: Any) -> Any:
        return [
            (np.int32(row), (np.int64(engine), np.int16(rank)))
            for row, (engine, rank) in super().place(cluster, rows)
        ]


class NumpyAdmission(FitsNow):
    def room(self, *args: Any) -> Any:
        return np.bool_(super().room(*args))


@pytest.mark.parametrize("case", [CASE, ROLES], ids=["mixed", "roles"])
@pytest.mark.parametrize(
    ("plain", "numpy"),
    [(PlainOrder, NumpyOrder), (PlainPlacement, NumpyPlacement), (FitsNow, NumpyAdmission)],
)
def test_numpy_answers_are_plain_ones(case: Case, plain: type[Part], numpy: type[Part]) -> None:
    ends = [run(case, parts={plain.slot: cls(cls.Config())}).walker.end for cls in (plain, numpy)]
    assert ends[0] == ends[1]


class Raises(OrderPart):
    keyed = True

    def key(self, table: Any, row: int) -> Any:
        raise ValueError("no\nkey")


class Negative(PlainOrder):
    def lane(self, table: Any, row: int) -> Any:
        return -1


class NoShares(OrderPart):
    shares = None  # type: ignore[assignment]


class Nowhere(PlainPlacement):
    def place(self, cluster: Any, rows: Any) -> Any:
        return [(row, (-1, 0)) for row in rows]


class Forgets(PlainPlacement):
    def place(self, cluster: Any, rows: Any) -> Any:
        return []


class Floats(PlainOrder):
    def key(self, table: Any, row: int) -> Any:
        return 1.5


class Places(PlainPlacement):
    def place(self, cluster: Any, rows: Any) -> Any:
        return [(row, 3) for row in rows]


@pytest.mark.parametrize(
    ("cls", "line"),
    [
        (Raises, r"order part Raises: key failed \(ValueError: no key\)"),
        (Floats, r"order part Floats: key answered: 1.5 is a float, not an integer"),
        (Negative, r"order part Negative: lane answered: -1 is no lane; it declares 2 shares"),
        (NoShares, r"order part NoShares: shares is no such declaration \(TypeError"),
        (Places, r"placement part Places: place answered: "),
        (Nowhere, r"placement part Nowhere: place answered: row \d+ on engine -1"),
        (Forgets, r"placement part Forgets: place answered: rows \[.*\] have no place"),
    ],
)
def test_what_a_part_raises_is_its_own(cls: type[Part], line: str) -> None:
    with pytest.raises(UserError, match=line):
        run(CASE, parts={cls.slot: cls(cls.Config())})


def test_what_its_options_check_is_a_mistake_of_the_user() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        window: int = 3

        def __post_init__(self) -> None:
            if self.window < 1:
                raise ValueError("window must be positive")

    with pytest.raises(UserError, match="options of order part mine: ValueError: window must be"):
        read_config("order", "mine", Config, {}, {"window": "0"})


def test_ours_are_not_wrapped() -> None:
    for preset in PRESETS:
        policy = build_policy(find_preset(preset))
        assert all(guarded(part) is part for part in policy.parts.values())
