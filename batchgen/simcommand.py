"""A simulation as a line of `batchgen sim`, and options of data files as it takes them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from batchgen.simjob import SimJob

FLAGS = (
    *("trace", "model", "gpu", "cluster", "gpus", "gpus_per_node", "layout", "policy"),
    *("arrivals", "faults", "max_output_tokens", "profile", "costs", "seed", "limit", "body"),
)
"""Fields of a job that `batchgen sim` has a flag for, in the order in which one reads them."""
ALWAYS = ("trace", "model", "gpus", "layout", "policy")
WORDS = {"faults": "devices"}


def command(job: SimJob) -> str:
    """The line of `batchgen sim` that runs a job."""
    words = ["batchgen", "sim"]
    defaults = {name: field.default for name, field in SimJob.__dataclass_fields__.items()}
    for name in FLAGS:
        value = getattr(job, name)
        is_gpu = name == "gpu" and job.cluster is None
        if value is None or (name == "gpu" and not is_gpu):
            continue
        if name in ALWAYS or is_gpu or value != defaults[name]:
            words += [f"--{WORDS.get(name, name).replace('_', '-')}", str(value)]
    if job.oracle:
        words.append("--oracle")
    for key, value in job.overrides:
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def overrides_of(changes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The `set` of a data file, "part.option" to a plain value, as `SimJob.overrides`."""
    return tuple(
        (key, str(value).lower() if isinstance(value, bool) else str(value))
        for key, value in changes.items()
    )
