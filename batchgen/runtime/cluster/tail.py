"""The long tail: when an engine changes its layout for few rows, and when it changes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.runtime.advisor import HOME, Offer
from batchgen.runtime.engine.leaving import only_decodes

if TYPE_CHECKING:
    from batchgen.runtime.cluster.machine import ClusterMachine
    from batchgen.runtime.engine.machine import EngineMachine


def look(cluster: ClusterMachine, engine: EngineMachine) -> None:
    """At a boundary: ask the tail part, once nothing can come any more and all rows decode."""
    if not cluster.input_closed or engine.switch_failed or engine.switch_to is not None:
        return
    if not only_decodes(engine) or cluster.hunger.somebody_waits() or cluster.homeless:
        return
    offer = cluster.policy.tail.layout(cluster, engine)
    if offer is not None and engine.num_resident <= offer.num_ranks * engine.seats:
        engine.change_layout(offer)


def undo(engine: EngineMachine) -> None:
    """Rows have come to a partitioned engine: it goes back to the layout of the plan."""
    if engine.switch_failed:
        return
    engine.change_layout(
        Offer(
            layout=HOME,
            num_ranks=engine.home_ranks,
            hbm_pages=engine.home_pages,
            now_ps=0,
            then_ps=0,
            switch_ps=0,
        )
    )
