"""A case: one small load on one small plan, with its troubles. Data; it does not run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from batchgen.check.toy import ToyAdvisor, ToyCost
from batchgen.coroutine import DECODE, Body, BodyFactory, Extend, SequenceView, Wait
from batchgen.coroutine import Outcome as Told
from batchgen.plan import EngineSpec, Plan
from batchgen.policy.base import Part
from batchgen.policy.presets import Policy, build_policy, find_preset
from batchgen.runtime.core import Runtime
from batchgen.sequence import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """stages: (follow-up tokens, output, wait in ps) of each further stage."""

    prompt: int
    budget: int
    output: int
    arrival: int = 0
    group: int = -1  # rows of one group share the first `shared` tokens
    shared: int = 0
    stages: tuple[tuple[int, int, int], ...] = ()

    @property
    def total(self) -> int:
        return self.output + sum(output for _, output, _ in self.stages)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One load on one plan. `troubles` are (kind, at_ps, number, number). roles: per engine, or
    empty."""

    preset: str
    rows: tuple[Row, ...]
    engines: int = 1
    ranks: int = 1
    roles: tuple[str, ...] = ()
    devices: int = 1
    engines_per_node: int = 1
    hbm_pages: int = 40
    host_pages: int = 0
    page: int = 4
    boundary: int = 8
    budget: int = 64
    seqs: int = 8
    depth: int = 1
    prefix: bool = False
    advised: bool = True
    troubles: tuple[tuple[str, int, int, int], ...] = ()
    overrides: dict[str, str] = field(default_factory=dict)
    copy_ps: int = 170
    stream_ps: int = 0  # what every pass fetches from the host
    peers_over_host: bool = False  # GPUs have no link of their own
    bad_copies: int = 0  # every so many copies fail

    def plan(self) -> Plan:
        roles = self.roles or ("both",) * self.engines
        return Plan(
            page_tokens=self.page,
            boundary=self.boundary,
            engines=tuple(
                EngineSpec(
                    engine=index,
                    node=index // self.engines_per_node,
                    num_ranks=self.ranks,
                    hbm_pages=self.hbm_pages,
                    host_pages=self.host_pages,
                    role=roles[index],
                )
                for index in range(self.engines)
            ),
            token_budget=self.budget,
            max_num_seqs=self.seqs,
            max_context=100_000,
            depth=self.depth,
        )

    def page_keys(self) -> Callable[[int], list[int]]:
        def keys(row: int) -> list[int]:
            one = self.rows[row]
            full, shared = one.prompt // self.page, min(one.shared, one.prompt) // self.page
            if one.group < 0:
                shared = 0
            private = range(1_000_000 + row * 1000, 1_000_000 + row * 1000 + full - shared)
            return [*range(one.group * 1000, one.group * 1000 + shared), *private]

        return keys

    def bodies(self) -> BodyFactory | None:
        """Bodies that go through the stages of their rows; None when no row has any."""
        if not any(row.stages for row in self.rows):
            return None
        return lambda sequence: staged(sequence, self.rows[sequence.row].stages)

    def advisor(self) -> ToyAdvisor:
        home = ToyCost(
            self.ranks,
            copy_ps=self.copy_ps,
            stream_ps=self.stream_ps,
            peers_over_host=self.peers_over_host,
        )
        return ToyAdvisor(home, self.hbm_pages, self.page)

    def policy(self, parts: Mapping[str, Part] | None = None) -> Policy:
        """The composition, with some of its parts replaced by these."""
        policy = build_policy(find_preset(self.preset), self.overrides)
        return replace(policy, parts={**policy.parts, **(parts or {})})

    def runtime(self, *, parts: Mapping[str, Part] | None = None, **options: Any) -> Runtime:
        """A runtime at its beginning. parts: see `policy`; options: those of `Runtime`."""
        table = Table([row.prompt for row in self.rows], [row.budget for row in self.rows])
        policy = self.policy(parts)
        if "lengths" in policy["predictor"].needs:
            table.predicted[:] = [row.total for row in self.rows]
        options.setdefault("bodies", self.bodies())
        return Runtime(
            table,
            self.plan(),
            policy,
            page_keys=self.page_keys() if self.prefix else None,
            advisor=self.advisor() if self.advised else None,
            **options,
        )


def staged(sequence: SequenceView, stages: tuple[tuple[int, int, int], ...]) -> Body:
    """A body whose every stage is followed by the next, after its wait."""

    outcome = yield DECODE
    while True:
        if outcome is Told.FINISHED and sequence.stage < len(stages):
            tokens, output, wait_ps = stages[sequence.stage]
            if wait_ps:
                outcome = yield Wait(wait_ps / 1e12)
            else:
                outcome = yield Extend(tokens, output)
        elif outcome is Told.WOKEN:
            tokens, output, _ = stages[sequence.stage]
            outcome = yield Extend(tokens, output)
        elif outcome is Told.FINISHED:
            return
        else:
            outcome = yield DECODE
