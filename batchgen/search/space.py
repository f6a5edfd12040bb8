"""What a search of plans may choose from: layouts, and values of options of the plan. Nothing is
resolved or timed here.

A candidate is a layout and options of the plan beside those of the job. What the job or its policy
sets is not searched. Values that can change nothing (more seats than rows, sub-batches larger than
any batch) are not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from batchgen.layout import MAX_INSTANCE_GPUS, Layout
from batchgen.layouts import candidates
from batchgen.model import ModelSpec
from batchgen.simjob import SimJob

Options = tuple[tuple[str, str], ...]
"""("plan.name", "value") pairs, as of `--set`."""

NOTHING: Options = ()

ON_CPU: Options = (("plan.attention", "cpu"), ("plan.kv", "host"))
ON_HOST: tuple[Options, ...] = (
    (("plan.weights", "spill"),),
    (("plan.kv", "host"),),
    ON_CPU,
    (("plan.kv", "host"), ("plan.weights", "spill")),
    (("plan.attention", "cpu"), ("plan.kv", "host"), ("plan.weights", "spill")),
    (("plan.weights", "experts"),),
    (("plan.attention", "cpu"), ("plan.kv", "host"), ("plan.weights", "experts")),
    (("plan.weights", "layers"),),
    (("plan.attention", "cpu"), ("plan.kv", "host"), ("plan.weights", "layers")),
)
"""Places for weights and KV that hosts have."""
ON_DISK: tuple[Options, ...] = (
    (("plan.weights", "disk"),),
    (("plan.attention", "cpu"), ("plan.kv", "host"), ("plan.weights", "disk")),
    (("plan.attention", "cpu"), ("plan.kv", "disk"), ("plan.weights", "disk")),
)
"""Places for what no host holds."""

PLACES = frozenset({"plan.weights", "plan.kv", "plan.attention"})
SPLITS = "prefill_engines"
"""The axis of roles."""
MAKE_ROOM = frozenset({"b_moe"})
"""Axes that do nothing but make room for KV, at a price."""
BUDGETS = (1024, 2048, 4096, 8192, 16384)
"""Tokens of a pass and rank."""
B_ATTN = (64, 256)
B_MOE = (4096, 16384)
MORE_SEATS = 4
"""Times the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layout, and options of the plan in the order of their names."""

    layout: Layout
    options: Options = NOTHING

    def of(self, job: SimJob) -> SimJob:
        """The job in this layout with these options."""
        return replace(job, layout=str(self.layout), overrides=(*job.overrides, *self.options))

    def value(self, key: str) -> str | None:
        return dict(self.options).get(key)

    @property
    def places(self) -> Options:
        return tuple(pair for pair in self.options if pair[0] in PLACES)

    @property
    def prefill_engines(self) -> int:
        return int(self.value("plan.prefill_engines") or 0)

    def having(self, options: Options) -> Candidate:
        """With these options too, instead of what they say anew."""
        return replace(self, options=tuple(sorted({**dict(self.options), **dict(options)}.items())))

    def without(self, keys: frozenset[str]) -> Candidate:
        return replace(self, options=tuple(p for p in self.options if p[0] not in keys))

    def __str__(self) -> str:
        return " ".join([str(self.layout), *(f"{key}={value}" for key, value in self.options)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Options of one kind: the keys that it sets, and its values beside that of the job."""

    name: str
    keys: frozenset[str]
    values: tuple[Options, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What values of a layout depend on: the rows of the load, tokens of a pass and seats of a rank
    by default, and whether passes know sub-batches (the roofline alone does)."""

    rows: int
    token_budget: int
    max_num_seqs: int
    sub_batches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched. pipelines: layouts with stages; roles: engines that only prefill; places:
    weights and KV on hosts for models that fit no layout otherwise; more_places: for others too;
    the rest: values of the plan's options (none: not searched)."""

    pipelines: bool = True
    roles: bool = True
    places: bool = True
    more_places: bool = False
    budgets: tuple[int, ...] = ()
    b_attn: tuple[int, ...] = ()
    b_moe: tuple[int, ...] = ()
    more_seats: int = 0

    def layouts(self, model: ModelSpec, num_gpus: int, gpus_per_node: int) -> list[Layout]:
        return candidates(model, num_gpus, gpus_per_node, pipelines=self.pipelines)

    def axes(
        self, model: ModelSpec, layout: Layout, sizes: Sizes, fixed: Mapping[str, object]
    ) -> list[Axis]:
        """Axes along which a candidate of this layout may change; `fixed` has what the job and its
        policy set of the plan."""
        found = [
            _axis("places", PLACES, self._places(model, layout)),
            _one("plan.prefill_engines", self._splits(layout)),
            _one("plan.token_budget", self._budgets(sizes, fixed)),
            _one("plan.b_moe", self._b_moe(model, layout, sizes)),
            _one("plan.b_attn", self._b_attn(layout, sizes)),
            _one("plan.max_num_seqs", self._seats(layout, sizes)),
        ]
        return [axis for axis in found if axis.values and not axis.keys & fixed.keys()]

    def _places(self, model: ModelSpec, layout: Layout) -> tuple[Options, ...]:
        if not self.more_places or layout.pp > 1:
            return ()
        expert = ("spill", "experts")
        return tuple(
            place
            for place in ON_HOST
            if model.is_moe or dict(place).get("plan.weights") not in expert
        )

    def _splits(self, layout: Layout) -> tuple[int, ...]:
        """Engines that prefill, of all: every number up to 8 engines, of more every eighth."""
        engines = layout.num_engines
        if not self.roles:
            return ()
        return tuple(dict.fromkeys(max(1, engines * k // 8) for k in range(1, 8) if engines > 1))

    def _budgets(self, sizes: Sizes, fixed: Mapping[str, object]) -> tuple[int, ...]:
        if "plan.engine_token_budget" in fixed:
            return ()
        return tuple(budget for budget in self.budgets if budget != sizes.token_budget)

    def _b_moe(self, model: ModelSpec, layout: Layout, sizes: Sizes) -> tuple[int, ...]:
        if not sizes.sub_batches or not model.is_moe:
            return ()
        most = sizes.token_budget * layout.attention_dp
        return tuple(tokens for tokens in self.b_moe if tokens < most)

    def _b_attn(self, layout: Layout, sizes: Sizes) -> tuple[int, ...]:
        if not sizes.sub_batches:
            return ()
        ranks = layout.attention_dp * layout.pp * layout.num_engines
        most = min(sizes.max_num_seqs, -(-sizes.rows // ranks))
        return tuple(rows for rows in self.b_attn if rows < most)

    def _seats(self, layout: Layout, sizes: Sizes) -> tuple[int, ...]:
        ranks = layout.attention_dp * layout.pp * layout.num_engines
        if not self.more_seats or sizes.rows <= sizes.max_num_seqs * ranks:
            return ()
        return (self.more_seats * sizes.max_num_seqs,)


LAYOUTS = Space()
"""What `batchgen sim` searches: what engines are made of."""
PLANS = Space(more_places=True, budgets=BUDGETS, b_attn=B_ATTN, b_moe=B_MOE, more_seats=MORE_SEATS)
"""What `batchgen plan` searches."""


def everything(layout: Layout, axes: list[Axis]) -> Iterator[Candidate]:
    """All candidates of a layout: the product of its axes."""
    for chosen in product(*((NOTHING, *axis.values) for axis in axes)):
        options = dict(pair for one in chosen for pair in one)
        yield Candidate(layout=layout, options=tuple(sorted(options.items())))


def too_large(layout: Layout) -> bool:
    """Whether gains of engines of this size have a plateau behind them."""
    return layout.gpus_per_engine > MAX_INSTANCE_GPUS


def replace_values(axes: list[Axis], name: str, values: tuple[Options, ...]) -> list[Axis]:
    """The axes, with these values of one, as far as it has them."""
    return [
        replace(axis, values=tuple(value for value in axis.values if value in values))
        if axis.name == name
        else axis
        for axis in axes
    ]


def _axis(name: str, keys: frozenset[str], values: tuple[Options, ...]) -> Axis:
    return Axis(name=name, keys=keys, values=values)


def _one(key: str, values: tuple[int, ...]) -> Axis:
    return Axis(
        name=key.partition(".")[2],
        keys=frozenset({key}),
        values=tuple(((key, str(value)),) for value in values),
    )
