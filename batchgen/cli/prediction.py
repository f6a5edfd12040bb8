"""`batchgen validate prediction` (b): exec on the wall clock against sim with a profile.

The profile comes from another run, on other prompts and lengths. Compared are the batch completion
time, the pass times by kind (the cost model on the very loads that ran) and the peaks of KV memory.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchgen.cli.common import parse_names, say
from batchgen.cli.torch_threads import calm_threads
from batchgen.errors import UserError
from batchgen.report import text
from batchgen.units import PS_PER_S

if TYPE_CHECKING:
    from batchgen.cost.api import CostModel
    from batchgen.cost.overheads import MeasuredPass
    from batchgen.cost.profile_schema import Spread
    from batchgen.exec.job import ExecJob

CLOSE = 0.10
"""Policies whose measured times differ by less than this have no order."""


def prediction(
    model: Annotated[Path, typer.Option(help="Hugging Face folder with safetensors.")],
    inputs: Annotated[
        list[Path], typer.Option("--input", "-i", help="JSONL of prompts; may be repeated.")
    ],
    profile: Annotated[Path, typer.Option(help="Profile of this machine and model.")],
    policies: Annotated[str, typer.Option(help="Presets, with commas between.")] = (
        "static,vllm,batchgen"
    ),
    max_tokens: Annotated[int, typer.Option(help="Output budget per row, in tokens.")] = 256,
    hbm_pages: Annotated[int | None, typer.Option(help="KV pages of the device.")] = None,
    repeats: Annotated[int, typer.Option(help="Measured runs per policy; the median counts.")] = 5,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PART.OPTION=VALUE", help="Change one option."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest error of the batch completion time that passes.")
    ] = 0.15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """(b) Predict a real run with a profile: errors of times and memory."""
    calm_threads()
    if repeats < 1:
        raise UserError(f"--repeats is {repeats}", remedy="give at least 1")
    from batchgen.cli.common import parse_overrides
    from batchgen.cost.profile import load_profile
    from batchgen.exec.job import ExecJob

    # Refuses what is no profile, in one line and before anything runs.
    spread = load_profile(profile).spread
    document = json.loads(profile.read_text())
    settings = _settings_as_profiled(document, parse_overrides(overrides or ()))
    dtype, threads = _machine_as_profiled(document, profile, threads)
    jobs = [
        ExecJob(
            model=model,
            input=input_,
            output=Path(os.devnull),
            policy=name,
            overrides=settings,
            max_tokens=max_tokens,
            hbm_pages=hbm_pages,
            limit=limit,
            dtype=dtype,
            device=_device_as_profiled(document, profile),
            threads=threads,
        )
        for input_ in inputs
        for name in parse_names("--policies", policies)
    ]
    # In turn, and again: a machine that changes its speed then does so under every policy.
    speed = Speedometer(jobs[0], document)
    rounds = [[measure(job, speed) for job in jobs] for _ in range(repeats)]
    runs = [
        compare(job, [taken[number] for taken in rounds], profile, speed.slower, spread)
        for number, job in enumerate(jobs)
    ]
    ordered = all(
        orders_agree([run for run in runs if run["input"] == str(input_)]) for input_ in inputs
    )
    worst = max(abs(run["bct_error"]) for run in runs)
    if as_json:
        report = {
            "schema": 1,
            "runs": runs,
            "order_agrees": ordered,
            "worst_bct_error": worst,
            "machine": speed.remark(),
            "profile_spread": None if spread is None else asdict(spread),
        }
        print(json.dumps(report))
    else:
        for run in runs:
            _print(run)
        print(speed.remark())
        print(_steadiness(spread))
        print(
            f"order of the policies {'agrees' if ordered else 'DIFFERS'}; "
            f"largest error of the batch completion time {worst:.1%}"
        )
    if worst > tolerance:
        say(f"an error of {worst:.1%} is above the tolerance of {tolerance:.0%}")
    return 0 if ordered and worst <= tolerance else 1


def _settings_as_profiled(
    document: dict[str, Any], settings: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """The given settings, with the page size of the profile, on which costs of attention depend,
    unless they name one. UserError for sub-batches."""
    named = {key for key, _ in settings}
    for name in sorted(named & {"plan.b_attn", "plan.b_moe"}):
        raise UserError(
            f"--set {name}: a profile is of whole batches and predicts no sub-batches",
            remedy="leave it out",
            code="capability",
        )
    page_tokens = document.get("model", {}).get("page_tokens")
    if page_tokens and "plan.page_tokens" not in named:
        return (*settings, ("plan.page_tokens", str(page_tokens)))
    return settings


def _machine_as_profiled(
    document: dict[str, Any], profile: Path, threads: int | None
) -> tuple[str, int | None]:
    """Dtype and threads of the runs: those of the profile. UserError for other threads."""
    machine = document.get("machine")
    machine = machine if isinstance(machine, dict) else {}
    profiled = machine.get("threads")
    if isinstance(profiled, int) and threads not in (None, profiled):
        raise UserError(
            f"{profile} was measured with {profiled} threads, not with {threads}",
            remedy=f"give --threads {profiled}, or profile with --threads {threads}",
        )
    dtype = machine.get("dtype")
    return (
        dtype if isinstance(dtype, str) else "float32",
        profiled if isinstance(profiled, int) else threads,
    )


def _device_as_profiled(document: dict[str, Any], profile: Path) -> str:
    """The device of the runs: that of the profile. UserError for one that is not here."""
    machine = document.get("machine")
    device = machine.get("device") if isinstance(machine, dict) else None
    if device == "cuda":
        from batchgen.exec.devices import check_device

        try:
            check_device(device)
        except UserError:
            raise UserError(
                f"{profile} was measured on a GPU, and this torch finds no cuda device",
                remedy="validate it there, or profile this machine",
            ) from None
        return "cuda"
    return "cpu"


def _steadiness(spread: Spread | None) -> str:
    """How far the profile's own machine strayed while it was measured, in one line."""
    if spread is None:
        return "the profile does not say how steady the machine was while it was measured"
    return (
        f"while the profile was measured a small job took {text.spread(spread.least, spread.most)}"
        " of its median: no prediction is surer than that"
    )


def _print(result: dict[str, Any]) -> None:
    print(
        f"{Path(result['input']).name}, {result['policy']}: "
        f"BCT measured {result['measured_bct_s']:.3f} s, predicted "
        f"{result['predicted_bct_s']:.3f} s{_range(result)} ({result['bct_error']:+.1%}"
        f"{_corrected(result)}); "
        f"KV peak {result['measured_kv_peak_pages']} pages, predicted "
        f"{result['predicted_kv_peak_pages']}"
    )
    for kind, entry in result["passes"].items():
        print(
            f"  {kind} passes: {entry['count']}, total {entry['measured_s']:.3f} s, predicted "
            f"{entry['error']:+.1%}; median error of a pass {entry['median_error']:.1%}"
        )


def _range(result: dict[str, Any]) -> str:
    """The prediction's error bar, as far as the profile knows one."""
    bar = result["predicted_bct_range_s"]
    return "" if bar is None else f" [{bar[0]:.3f}, {bar[1]:.3f}]"


def _corrected(result: dict[str, Any]) -> str:
    """What the prediction was corrected by."""
    slower = result["machine_slower"]
    if abs(slower - 1) < 0.005:
        return ""
    return f", {result['uncorrected_error']:+.1%} for the machine as it was profiled"


def orders_agree(runs: list[dict[str, Any]]) -> bool:
    """Whether predicted times order the runs as measured ones do, where those differ enough."""
    pairs = [(run["measured_bct_s"], run["predicted_bct_s"]) for run in runs]
    return all(
        (left[0] < right[0]) == (left[1] < right[1])
        for index, left in enumerate(pairs)
        for right in pairs[index + 1 :]
        if abs(left[0] - right[0]) > CLOSE * max(left[0], right[0])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A real run: its BCT, the tokens that each row produced, why it ended, passes, KV pages."""

    bct_ps: int
    produced: list[int]
    reasons: dict[int, str]
    passes: list[MeasuredPass]
    kv_peak_pages: int


class Speedometer:
    """Times the calibration job of a profile, and says how the machine differs from then."""

    def __init__(self, job: ExecJob, document: dict[str, Any]) -> None:
        from batchgen.exec.calibration import Calibration
        from batchgen.exec.hub import find_model
        from batchgen.exec.worker import Worker

        self._then_s = _then_s(document)
        self._now = None
        if self._then_s:
            worker = Worker(
                find_model(job.model),
                page_tokens=document["model"]["page_tokens"],
                hbm_pages=0,
                host_pages=0,
                dtype=job.dtype,
                threads=job.threads,
                device=job.device,
            )
            self._now = Calibration(worker)

    def look(self) -> None:
        """Time the job now."""
        if self._now is not None:
            self._now.look_long()

    @property
    def slower(self) -> float:
        """Time of the job over that of then, the median of all looks; 1 if it is not known."""
        return 1.0 if self._now is None else self._now.median_s / self._then_s

    def remark(self) -> str:
        """The machine, compared with when it was profiled, in one line."""
        if self._now is None:
            return "the profile has no calibration: whether the machine is as it was is unknown"
        tenths = statistics.quantiles(self._now.times_s, n=10)
        least, most = tenths[0] / self._then_s, tenths[-1] / self._then_s
        return (
            f"a small job takes {self.slower:.2f} times what it took when the machine was profiled "
            f"({least:.2f} to {most:.2f} in eight looks of ten); predictions are for the machine as"
            " it is"
        )


def _then_s(document: dict[str, Any]) -> float:
    """Seconds of the calibration job when the profile was made; 0 if it does not say."""
    then = document.get("calibration")
    seconds = then.get("median_s") if isinstance(then, dict) else None
    if isinstance(seconds, int | float) and 0 < seconds < math.inf:
        return float(seconds)
    return 0.0


def measure(job: ExecJob, speed: Speedometer) -> Measured:
    """Run a job on the wall clock, and the calibration job before and after."""
    from batchgen.exec.clock import WallClock
    from batchgen.exec.drive import drive
    from batchgen.exec.prepare import prepare
    from batchgen.exec.profile_passes import measured_passes

    prepared = prepare(job)
    speed.look()
    ran = drive(prepared, WallClock())
    speed.look()
    return Measured(
        bct_ps=int(ran.driver.record.end_ps.max()),
        produced=[len(ran.tokens[row]) for row in range(len(prepared.jobs))],
        reasons=ran.reasons,
        passes=measured_passes(ran.driver),
        kv_peak_pages=int(max(ran.driver.record.steps["kv_pages"], default=0)),
    )


def compare(
    job: ExecJob, runs: list[Measured], profile: Path, slower: float, spread: Spread | None
) -> dict[str, Any]:
    """The run of median time against its simulation with the profile, on a machine that takes
    `slower` times as long as it did then; `spread`: how steady it was then."""
    from batchgen.cost.build import build_cost
    from batchgen.cost.overheads import errors_by_kind
    from batchgen.exec.hub import find_model
    from batchgen.hardware import load_gpu
    from batchgen.layout import Layout
    from batchgen.model import load_model

    # The GPU only fills a slot of the signature: with a profile no number of it is used.
    cost = build_cost(
        load_model(find_model(job.model)), load_gpu("h100"), Layout(), profile=profile
    )
    runs = sorted(runs, key=lambda run: run.bct_ps)
    ran = runs[len(runs) // 2]
    profiled_ps, predicted_peak = _simulate(job, cost, ran)
    predicted_ps = profiled_ps * slower
    return {
        "input": str(job.input),
        "policy": job.policy,
        "rows": len(ran.produced),
        "output_tokens": sum(ran.produced),
        "measured_bct_s": ran.bct_ps / PS_PER_S,
        "measured_bct_s_all": [run.bct_ps / PS_PER_S for run in runs],
        "predicted_bct_s": predicted_ps / PS_PER_S,
        "predicted_bct_range_s": None
        if spread is None
        else [predicted_ps * part / PS_PER_S for part in (spread.least, spread.most)],
        "bct_error": predicted_ps / ran.bct_ps - 1,
        "machine_slower": slower,
        "uncorrected_error": profiled_ps / ran.bct_ps - 1,
        "passes": errors_by_kind(cost, ran.passes),
        "measured_kv_peak_pages": ran.kv_peak_pages,
        "predicted_kv_peak_pages": predicted_peak,
    }


def _simulate(job: ExecJob, cost: CostModel, ran: Measured) -> tuple[int, int]:
    """BCT in ps and peak of KV pages of the same job, told the lengths that came out."""
    import numpy as np

    from batchgen.exec.prepare import prepare
    from batchgen.sim.cluster import Simulation

    prepared = prepare(job)
    table = prepared.table
    produced = np.maximum(np.array(ran.produced, dtype=np.int32), 1)
    reasons = {(row, 0): reason for row, reason in ran.reasons.items()}
    simulation = Simulation(
        prepared.runtime(), table, prepared.plan, cost, produced, reasons=reasons
    )
    simulation.arrive(list(range(len(table))), 0)
    simulation.close_input(0)
    simulation.run()
    steps = simulation.recorder.steps(cost)
    return int(simulation.recorder.end_ps.max()), int(max(steps["kv_pages"], default=0))
