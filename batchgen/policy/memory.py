"""Memory parts: what gives way when the next passes need more pages than are free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from batchgen.memory.pool import BOUNDARIES_AHEAD
from batchgen.policy.base import MemoryPart, Part
from batchgen.policy.options import option

if TYPE_CHECKING:
    from batchgen.sequence import Table


class NothingYields(MemoryPart):
    """Nobody gives way: admission reserved the worst case. Rows without pages pause."""

    way = "stall"


class RecomputeNewest(MemoryPart):
    """The newest row loses its pages and is prefilled again later (vLLM)."""


class RetractLeastDecoded(MemoryPart):
    """The row that has decoded least loses its pages and is prefilled again later. Source: SGLang's
    retraction."""

    newest = False

    def rank_victim(self, table: Table, row: int) -> int:
        return table.v_prompt[row] - table.v_offset[row]


class SuspendMostDecoded(MemoryPart):
    """BatchGen's extension: rows near their page limit get pages, or the most decoded row yields.

    Pages of a suspended row come free only when its last page is on the host, so with phases the
    part looks `boundaries_ahead` boundaries ahead and yields before the next is in danger.
    """

    way = "suspend"
    newest = False
    streams = True
    needs: ClassVar[frozenset[str]] = frozenset({"host"})

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        boundaries_ahead: int = option(BOUNDARIES_AHEAD, least=1, most=1000)

    @property
    def boundaries_ahead(self) -> int:
        ahead: int = self.config.boundaries_ahead
        return ahead

    def rank_victim(self, table: Table, row: int) -> int:
        return table.v_offset[row] - table.v_prompt[row]
