"""What a change of a device does to the engines of a simulation. It keeps nothing of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen import events as ev

if TYPE_CHECKING:
    from batchgen.sim.cluster import Simulation
    from batchgen.sim.faults import Fault


def strike(simulation: Simulation, fault: Fault, group: int, gpu: int) -> None:
    """It is time. group: the engine of the GPU, or its pipeline; the fault is one of its GPUs."""
    now: int = simulation.env.now  # type: ignore[assignment]
    engine = -1 if fault.kind == "skew" else group * simulation.batches
    simulation.recorder.mark(now, engine, "fault", fault.text())
    if fault.kind == "skew":
        _change_skew(simulation, fault, now)
    elif fault.kind == "slow" and simulation.pipelines:  # a stage is slow by itself
        simulation.pipelines[group].change(gpu, fault)
    else:
        # Whatever else happens to a GPU of a pipeline happens to all its batches.
        for number in range(engine, engine + simulation.batches):
            _strike_engine(simulation, fault, number, gpu, now)
            if fault.kind == "lost" and simulation.pipelines:
                simulation.pipelines[group].clear(now)


def _strike_engine(simulation: Simulation, fault: Fault, engine: int, gpu: int, now: int) -> None:
    device = simulation.devices[engine]
    if fault.kind == "slow":
        device.troubles.change(gpu, fault)
        begun = device.flight.num_begun(now)
        if device.flight.change_speed(device.troubles.speed, now):
            simulation.retimed(engine, device, begun)
    elif fault.kind == "host":
        device.host.change(gpu, fault)
    elif fault.kind == "notice":
        simulation.tell(ev.DeviceNotice(engine, gpu, fault.deadline_ps))
    elif fault.kind == "lost":
        simulation.lose(engine, gpu, device, now)
    else:
        simulation.tell(ev.DeviceBack(engine, gpu))


def _change_skew(simulation: Simulation, fault: Fault, now: int) -> None:
    """Other experts are popular: passes that begin from now on cost something else."""
    assert simulation.skewed is not None
    planner = simulation.skewed(fault.speed)
    simulation.cost, simulation.layout_cost = planner.home, planner.cost
    for pipeline in simulation.pipelines:
        pipeline.use(simulation.cost)
    for engine, device in enumerate(simulation.devices):
        begun = device.flight.num_begun(now)
        if device.flight.change_cost(simulation.cost_of(device.layout), now):
            simulation.retimed(engine, device, begun)
