"""From the options of two commands to what they both ask of a backend. Each pair has its options
under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from batchgen.cli.common import parse_overrides
from batchgen.cli.load_options import DEFAULTS
from batchgen.errors import UserError

if TYPE_CHECKING:
    from batchgen.cli.exec_flags import ExecFlags
    from batchgen.cli.plan_flags import PlanFlags
    from batchgen.cli.serve_flags import ServeFlags
    from batchgen.cli.sim_flags import SimFlags


def of_engine(asked: ExecFlags | ServeFlags) -> dict[str, Any]:
    """Fields of an `ExecJob`: the model, and how an engine runs rows. Loads torch.
    Raises UserError."""
    from batchgen.exec.devices import usual_dtype

    return {
        "model": asked.model,
        "policy": asked.policy,
        "overrides": parse_overrides(asked.overrides or ()),
        "dtype": asked.dtype or usual_dtype(asked.device),
        "exact": asked.exact,
        "device": asked.device,
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
        "seed": asked.seed,
        "hbm_pages": asked.hbm_pages,
        "host_pages": asked.host_pages,
        "threads": asked.threads,
    }


def of_load(asked: SimFlags | PlanFlags) -> dict[str, Any]:
    """Fields of a `SimJob`: the load, the model, the machines and the costs. Raises UserError."""
    return {
        "trace": asked.trace,
        "model": asked.model,
        "gpu": asked.gpu or DEFAULTS["gpu"],
        "cluster": asked.cluster,
        "gpus": asked.gpus,
        "gpus_per_node": asked.gpus_per_node,
        "overrides": parse_overrides(asked.overrides or ()),
        "arrivals": asked.arrivals,
        "max_output_tokens": asked.max_output_tokens,
        "oracle": asked.oracle,
        "profile": asked.profile,
        "costs": asked.costs,
        "seed": asked.seed,
        "limit": asked.limit,
        "body": asked.body,
    }


def check_machines(asked: SimFlags | PlanFlags) -> None:
    """Raises UserError for two kinds of machines."""
    if asked.cluster is not None and asked.gpu is not None:
        raise UserError("--gpu and --cluster are both given", remedy="give one of them")


@contextmanager
def extra_needed(command: str, extras: str) -> Iterator[None]:
    """While a backend is imported: UserError that says how to install what is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"batchgen {command} needs {error.name}", remedy=f"pip install 'batchgen[{extras}]'"
        ) from None
