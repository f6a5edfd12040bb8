"""The engines that may take one row with KV, without a list of them: a hand-over among a thousand
engines costs what it costs among ten. It chooses none; a placement part does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchgen.runtime.cluster.loads import Least, Loads
    from batchgen.runtime.engine.machine import EngineMachine


class Homes:
    """A sequence of engines. Its length and its items are counted out; `turn` and `least_loaded`
    look at no more engines than they must. What a part is asked to choose from is never empty."""

    __slots__ = ("_engines", "_least", "_loads", "_suits")

    def __init__(
        self,
        engines: Sequence[EngineMachine],
        suits: Callable[[EngineMachine], bool],
        loads: Loads,
        least: Least | None = None,
    ) -> None:
        """Those of the engines that suit. least: over just these engines, if somebody keeps it."""
        self._engines, self._suits, self._loads, self._least = engines, suits, loads, least

    def within(self, engines: Sequence[EngineMachine]) -> Homes:
        """Those of some of the engines, in the order in which they are given."""
        return Homes(engines, self._suits, self._loads)

    def __iter__(self) -> Iterator[EngineMachine]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return any(self._suits(one) for one in self._engines)

    def __getitem__(self, index: Any) -> Any:
        """An engine, or a list of them for a slice."""
        return self._all()[index]

    def __contains__(self, engine: object) -> bool:
        return engine in self._all()

    def __reversed__(self) -> Iterator[EngineMachine]:
        return reversed(self._all())

    def _all(self) -> list[EngineMachine]:
        return [one for one in self._engines if self._suits(one)]

    def turn(self, number: int) -> EngineMachine:
        """Whose turn it is: the first that suits from the `number`th on, going round."""
        engines, count = self._engines, len(self._engines)
        for step in range(count):
            engine = engines[(number + step) % count]
            if self._suits(engine):
                return engine
        raise IndexError("there is no engine to choose")

    def least_loaded(self) -> EngineMachine:
        """The one to which the cluster has given the least work; the lower number at ties."""
        if self._least is None:
            return min(self, key=lambda one: (self._loads.of(one.id), one.id))
        found = self._least.first(self._suits)
        if found is None:
            raise IndexError("there is no engine to choose")
        return found
