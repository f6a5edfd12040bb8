"""Costs that are no sums over rows: contexts' extremes and prompt pieces, exact in every split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
from core_cases import Case, Row, random_case, swaps
from core_sim import simulate_case

from batchgen.check.toy import ToyAdvisor, ToyCost
from batchgen.cost.api import IntArray, PassDetail, PassLoad
from batchgen.runtime.advisor import HOME
from batchgen.sequence import Table
from batchgen.sim.flight import Flight
from batchgen.sim.rowbook import RowBook
from batchgen.step import Composition, Step

replace_step = msgspec.structs.replace


class DetailedToy(ToyCost):
    """The toy cost, and what is affine in nothing."""

    def __init__(self, num_ranks: int = 1) -> None:
        super().__init__(num_ranks)
        self.detailed = True
        self.seen: list[PassDetail] = []

    def pass_ps(self, load: PassLoad, detail: PassDetail | None = None) -> IntArray:
        found = PassDetail.even(load) if detail is None else detail
        if detail is not None:
            self.seen.append(detail)
        time = super().pass_ps(load)
        time = time + ((found.longest - found.shortest) ** 2 // 3 + found.longest).max(axis=0)
        for tokens, starts in zip(found.piece_tokens, found.piece_starts, strict=True):
            time = time + tokens * starts % 17 + tokens**2
        return np.where(load.decodes.any(axis=0) | load.chunk_tokens.any(axis=0), time, 0)

    def time_ps(self, loads: Sequence[Sequence[int]]) -> int:
        columns = np.array(loads, dtype=np.int64).T[:, :, None]
        return int(self.pass_ps(PassLoad(*columns))[0])

    def decode_affine(self, decodes: int, checkpoint: bool) -> tuple[int, int]:
        raise AssertionError("asked although it is not affine")


@dataclass(frozen=True)
class DetailedAdvisor(ToyAdvisor):
    def cost(self, layout: str) -> ToyCost:
        return self.home if layout == HOME else DetailedToy(max(1, self.home.num_ranks // 2))


class DetailedCase(Case):
    def advisor(self) -> ToyAdvisor:
        return DetailedAdvisor(DetailedToy(self.ranks), self.hbm_pages, self.page)


def outcome(case: Case, **options: object) -> tuple[list[int], list[int], dict[int, str]]:
    simulation, _ = simulate_case(case, **options)
    recorder = simulation.recorder
    return recorder.first_token_ps.tolist(), recorder.end_ps.tolist(), recorder.reasons


def check(seed: int, case: Case) -> None:
    fields = {name: getattr(case, name) for name in Case.__dataclass_fields__}
    detailed = DetailedCase(**fields)
    whole = outcome(detailed)
    assert outcome(detailed, reference=True) == whole, f"seed {seed}"
    assert outcome(detailed, max_passes=3) == whole, f"seed {seed}"


@pytest.mark.parametrize("preset", ["vllm", "static", "orca", "batchgen"])
def test_any_split_of_a_step_gives_the_same_times(preset: str) -> None:
    for seed in range(25):
        case = random_case(random.Random(seed), (preset, {}), kinds=())
        check(seed, replace(case, bad_copies=0))


def test_so_do_other_compositions_and_lost_devices() -> None:
    for seed in range(40):
        rng = random.Random(1000 + seed)
        case = replace(random_case(rng, rng.choice(swaps()), kinds=()), bad_copies=0)
        check(seed, case)
        at = rng.randint(0, 900_000)
        lost = (("lost", at, 0, 0), ("back", at + 2_000_000, 0, 0))
        fields = {name: getattr(case, name) for name in Case.__dataclass_fields__}
        detailed = DetailedCase(**{**fields, "troubles": lost})
        reasons = outcome(detailed)[2]
        assert reasons == outcome(DetailedCase(**{**fields, "troubles": ()}))[2]


def test_a_slow_device_is_as_slow_in_every_split() -> None:
    rows = tuple(Row(prompt=5 + i, budget=40, output=30 + i) for i in range(4))
    fields = {"preset": "vllm", "rows": rows, "troubles": (("slow", 0, 0, 4),)}
    whole = outcome(DetailedCase(**fields))  # type: ignore[arg-type]
    assert outcome(DetailedCase(**fields), reference=True) == whole  # type: ignore[arg-type]


def test_the_detail_is_that_of_the_rows_of_each_pass() -> None:
    """Against a walk of `Composition`, row by row."""
    for seed in range(200):
        rng = random.Random(seed)
        ranks, lag, count = rng.choice((1, 1, 3)), rng.randint(0, 1), rng.randint(1, 9)
        pieces = rng.choice((0, 0, 2))
        outputs = [rng.randint(2, 60) for _ in range(count + pieces)]
        prompts = [rng.randint(1, 30) for _ in outputs]
        table = Table(prompts, outputs)
        for row in range(len(outputs)):
            table.v_rank[row] = rng.randrange(ranks)
        for row in range(count):
            table.v_produced[row] = rng.randint(1, outputs[row] - 1)
        cost = DetailedToy(ranks)
        flight = Flight(0, RowBook(table, np.array(outputs)), cost, lag)
        flight.k = flight.q = k = rng.randint(0, 90)
        chunks = [(count + i, rng.randint(0, 40), rng.randint(1, 9), False) for i in range(pieces)]
        until = rng.choice(("first", "n"))
        step = Step(0, k, 0, rng.randint(1, 80), until, True, list(range(count)), [], chunks)
        if rng.random() < 0.5:  # those with prompts pause
            step = replace_step(step, paused=sorted({table.v_rank[row] for row, *_ in chunks}))
        flight.launch(step, 0)
        (detail,) = cost.seen
        walk, have = Composition(lag, table.v_rank), list(table.produced.tolist())
        walk.launch(step)
        ended: list[list[int]] = []
        for number in range(flight.passes):
            if number >= 1 + lag:
                walk.report(ended[number - 1 - lag])
            one = walk.next_pass()
            assert one is not None
            read: dict[int, list[int]] = {}
            for row in one.decodes:
                read.setdefault(table.v_rank[row], []).append(prompts[row] + have[row])
                have[row] += 1
            ended.append([row for row in one.decodes if have[row] == outputs[row]])
            for rank in range(ranks):
                contexts = read.get(rank, [0])
                assert detail.longest[rank, number] == max(contexts)
                assert detail.shortest[rank, number] == min(contexts)
            found = [
                (int(rank), int(tokens[number]), int(starts[number]))
                for rank, tokens, starts in zip(
                    detail.piece_ranks, detail.piece_tokens, detail.piece_starts, strict=True
                )
            ]
            assert found == [(table.v_rank[row], size, start) for row, start, size, _ in one.chunks]
