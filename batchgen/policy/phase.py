"""Phase parts: when an engine changes between prefill and decode. They admit nobody themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.policy.base import Part, PhasePart
from batchgen.policy.options import option

if TYPE_CHECKING:
    from batchgen.runtime.engine.machine import EngineMachine
    from batchgen.runtime.engine.rank import Rank


class Mixed(PhasePart):
    """No phases: every pass may hold prompts and decodes."""


class Gathered(PhasePart):
    """No phases, but prompts come on all ranks of an engine together: in lockstep the prompt of one
    rank makes all others wait, so it costs nothing more if they have one too.

    Ranks with rows waiting take them once `share` of them have room for the next one and
    `least_free` of the engine's pages are free, or some rank has nothing at all to do. Source:
    TensorRT-LLM's balance of attention data parallelism (technical blog 10), which holds prompts
    until every rank has some.
    """

    gathers = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        share: float = option(1.0, least=0, most=1)
        least_free: float = option(0.0, least=0, most=1)

    def gathered(self, engine: EngineMachine, able: int, asking: int) -> bool:
        if not engine.num_resident:
            return True
        return bool(
            able >= self.config.share * asking and engine.free_fraction >= self.config.least_free
        )


class PrefillFirst(PhasePart):
    """Prompts come first, rank by rank: whoever waits and fits is prefilled in the next pass, while
    the decodes of that rank pause; those of other ranks go on. Source: SGLang's scheduler, which
    runs a prefill batch whenever it can make one. Each of its data-parallel ranks has its own, and
    one without prompts decodes in the same pass (but for speculative decoding).

    `least_free`: a rank begins only once so much of its HBM pages and of its seats is free, or
    nothing runs there.
    """

    pauses = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        least_free: float = option(0.0, least=0, most=1)

    def takes(self, engine: EngineMachine, rank: Rank) -> bool:
        if not (rank.running or rank.inbound):
            return True
        free = min(rank.free / max(rank.size, 1), 1 - rank.num_seated / engine.seats)
        return bool(free >= self.config.least_free)


class RefillNode(PhasePart):
    """BatchGen's refill-node: decode until under-used, then all ranks prefill together.

    Prefill starts when nothing suspended is left to refill with and at least `refill_free` of the
    HBM pages and of the seats are free, or nothing runs. Source: BatchGen paper, sections 2.6 and
    5.3.
    """

    phases = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Part.Config):
        refill_free: float = option(0.2, least=0, most=1)

    def starts_prefill(self, engine: EngineMachine) -> bool:
        if engine.num_ready or engine.num_inbound:
            return False
        if not engine.num_resident:
            return True
        free = min(engine.free_fraction, engine.free_seats)
        return bool(free >= self.config.refill_free)


class RefillLockstep(RefillNode):
    """Refill-node where ranks step together: there a prompt of one rank makes all others wait. An
    engine of one rank mixes prompts and decodes, which overlap."""

    lockstep_only = True
