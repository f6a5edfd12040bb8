"""How large the arenas of a job are, and the limits of its passes: the plan of one device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchgen.errors import UserError
from batchgen.exec.config import ModelConfig, load_config
from batchgen.exec.devices import free_device_bytes
from batchgen.exec.free_memory import free_memory_bytes
from batchgen.exec.job import ExecJob
from batchgen.exec.weights import expected_shapes
from batchgen.memory.pool import BOUNDARIES_AHEAD, pages_ahead
from batchgen.plan import EngineSpec, Plan
from batchgen.planning import PlanOptions
from batchgen.policy.presets import Preset

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What decides the plan of a job on a device where the job and its policy say nothing.

    `boundary`: decode passes between two looks at who waits (0: the policy's). `memory`: part of
    the device's free memory that its KV arena may take, if nobody has measured what passes take
    beside it; `host_memory`: part of the host's. `depth`: passes that are launched before the first
    is known.
    """

    token_budget: int
    max_num_seqs: int
    boundary: int
    memory: float
    host_memory: float
    depth: int = 1


LIMITS = {
    # A pass of a CPU saturates far below a GPU's token budget; measured by `batchgen profile`. It
    # runs few rows, so a place that stands empty counts for more than the decision: 200 prompts of
    # the small model took 1.42 s with a boundary of 64 and 1.25 s with 16 (`batchgen exec`, 160
    # pages of 64 tokens, --set plan.boundary=N). Both tiers and the passes share its memory.
    "cpu": Limits(token_budget=2048, max_num_seqs=256, boundary=16, memory=0.25, host_memory=0.25),
    # Of a GPU nothing else wants the memory but the passes themselves.
    # It is to have its next pass before this one ends.
    "cuda": Limits(
        token_budget=8192, max_num_seqs=1024, boundary=0, memory=0.8, host_memory=0.5, depth=2
    ),
}
# Of a GPU beside weights, KV and the largest pass: CUDA graphs, and what torch cannot use.
GRAPHS_BYTES = 2 << 30
# Rows whose KV the host holds when no size is given, for each that can run: a stock that decoding
# lives on while the device prefills the next.
HOST_ROWS_PER_SEAT = 4


def make_plan(
    job: ExecJob,
    options: PlanOptions,
    preset: Preset,
    config: ModelConfig,
    longest: Sequence[int] | Ints,
    *,
    page_tokens: int,
    uses_host: bool = True,
    shared_pages: int = 0,
    pass_bytes: int = 0,
) -> Plan:
    """The plan. Arenas hold what can run at once, however long the job is; `longest`: the most
    tokens that each row may come to, prompt and output; `shared_pages` come on
    top of that. `uses_host`: the policy has a use for a host tier; `pass_bytes`: what the largest
    pass takes of the device (0: unknown). Raises UserError for sizes that do not fit."""
    boundary = options.boundary or limits_of(job.device).boundary or preset.boundary
    token_budget, seats = pass_limits(job.device, options, preset)
    if job.body is not None:  # nobody knows how far a body extends its row
        longest = np.full(len(longest), config.max_context)
    page_bytes = config.kv_page_elements(page_tokens) * itemsize(job)
    room = room_pages(job.device, page_bytes, pass_bytes)
    hbm, host = job.hbm_pages, job.host_pages
    if hbm is None:
        hbm = min(room, shared_pages + pages_wanted(longest, page_tokens, boundary, seats))
    if host is None:
        stock = seats * HOST_ROWS_PER_SEAT
        wanted = pages_wanted(longest, page_tokens, boundary, stock) if uses_host else 0
        host = min(_host_room_pages(job.device, page_bytes), wanted)
    if not options.host:
        host = 0
    if hbm < 2 or host < 0:
        raise UserError(f"{hbm} hbm and {host} host pages", remedy="give at least 2 and 0")
    _check_pages_fit(job.device, hbm, host, page_bytes)
    return Plan(
        page_tokens=page_tokens,
        boundary=boundary,
        engines=(EngineSpec(engine=0, node=0, hbm_pages=hbm, host_pages=host),),
        token_budget=token_budget,
        max_num_seqs=seats,
        max_context=config.max_context,
        b_attn=options.b_attn,
        b_moe=options.b_moe,
        depth=options.depth,
    )


def limits_of(device: str) -> Limits:
    """Those of "cpu" or "cuda"."""
    return LIMITS[device]


def pass_limits(device: str, options: PlanOptions, preset: Preset) -> tuple[int, int]:
    """Tokens and rows of the largest pass."""
    limits = limits_of(device)
    return (
        options.token_budget or preset.token_budget or limits.token_budget,
        options.max_num_seqs or preset.max_num_seqs or limits.max_num_seqs,
    )


def room_pages(device: str, page_bytes: int, pass_bytes: int = 0) -> int:
    """KV pages that the memory of a device has room for beside all else, at least 2; `pass_bytes`
    as in `make_plan`."""
    free = free_device_bytes(device)
    room = free - pass_bytes - GRAPHS_BYTES if pass_bytes else int(free * limits_of(device).memory)
    return max(2, room // page_bytes)


def _host_room_pages(device: str, page_bytes: int) -> int:
    return max(2, int(free_memory_bytes() * limits_of(device).host_memory) // page_bytes)


def _check_pages_fit(device: str, hbm: int, host: int, page_bytes: int) -> None:
    """UserError for tiers that memory cannot hold: a CPU has one for both."""
    hbm_bytes, host_bytes = hbm * page_bytes, host * page_bytes
    if device == "cpu":
        fits = hbm_bytes + host_bytes <= free_memory_bytes()
        where = f"the {free_memory_bytes() / 1e9:.1f} GB of memory that are free"
    else:
        on_device, on_host = free_device_bytes(device), free_memory_bytes()
        fits = hbm_bytes <= on_device and host_bytes <= on_host
        where = (
            f"the {on_device / 1e9:.1f} GB that are free on the GPU and the {on_host / 1e9:.1f} GB "
            "of the host"
        )
    if not fits:
        raise UserError(
            f"{hbm} hbm and {host} host pages of {page_bytes} bytes do not fit {where}",
            remedy="lower --hbm-pages and --host-pages",
            code="capacity",
        )


def pages_wanted(
    longest_tokens: Sequence[int] | Ints, page_tokens: int, boundary: int, rows: int | None = None
) -> int:
    """Pages with which none of the `rows` longest rows (None: of all) ever waits for memory: its
    own and those that lazy admission keeps free for it."""
    ahead = pages_ahead(boundary, BOUNDARIES_AHEAD, page_tokens)
    pages = -(-np.sort(np.asarray(longest_tokens, dtype=np.int64))[::-1] // page_tokens)
    return max(2, int((pages[:rows] + ahead).sum()))


def itemsize(job: ExecJob) -> int:
    """Bytes of a weight and of a KV element."""
    return 4 if job.dtype == "float32" else 2


def weight_bytes(job: ExecJob, config: ModelConfig) -> int:
    """Bytes of the model's weights in the dtype of the job, from its config alone."""
    return sum(map(math.prod, expected_shapes(config).values())) * itemsize(job)


def check_weights_fit(job: ExecJob, folder: Path) -> None:
    """Refuse a model that memory cannot hold, before the system kills the process for it."""
    need, free = weight_bytes(job, load_config(folder)), free_device_bytes(job.device)
    if need > free:
        raise UserError(
            f"model {job.model} needs {need / 1e9:.1f} GB in {job.dtype}, "
            f"{free / 1e9:.1f} GB of memory are free{' on the GPU' if job.device != 'cpu' else ''}",
            remedy="choose a smaller model or --dtype bfloat16",
            code="capacity",
        )
