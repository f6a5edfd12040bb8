"""What a policy part is. A part decides one concern, purely: it reads the view and writes the
draft.

A part is made from a frozen `Config`, holds no state of its own and may keep a small `State` per
engine (made by `new_state`, owned by the runtime). Two kinds:

EnginePart   asked at decision points of an engine. `decide_engine` sees the whole engine once,
             `decide` sees every rank whose answer may have changed.
ClusterPart  asked on arrival, idleness and loss; sees the runtime's read-only cluster view.

Horizon: after a decision, for how many passes can the part not change its mind unless an event
comes?
Default 1, which is always right; say more only with a monotonicity argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from batchgen.runtime.draft import Draft
    from batchgen.runtime.engine import Engine
    from batchgen.sequence import Table

ENGINE_SLOTS = ("recovery", "phase", "memory", "order", "admission", "batching")
CLUSTER_SLOTS = ("placement", "tail", "predictor")
SLOTS = (*ENGINE_SLOTS, *CLUSTER_SLOTS)


class Part:
    """Base of all parts. `needs` names backend capabilities without which the part cannot work."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Options of the part, set with --set slot.option=value."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else type(self).Config()

    def new_state(self) -> Any:
        """State of the part for one engine; None when it needs none."""
        return None


class EnginePart(Part):
    """A part that is asked at the decision points of one engine."""

    def decide_engine(self, view: Engine, draft: Draft, state: Any) -> None:
        """Look at the whole engine, once per decision, before its ranks are asked."""

    def decide(self, view: Engine, draft: Draft, state: Any) -> None:
        """Decide for `draft.rank`."""

    def horizon(self, view: Engine, draft: Draft, state: Any) -> int:
        """Passes for which the answer about `draft.rank` stands."""
        return 1


class OrderPart(EnginePart):
    """Who is next. The key is taken when a row enters a lane; None means first in, first out."""

    def key(self, table: Table, row: int) -> int | None:
        return None
