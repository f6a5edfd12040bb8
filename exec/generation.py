"""The generation defaults of a checkpoint: what its rows get that name no value of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from batchgen.fields import Fields, read_json_object
from batchgen.job.sampling import MAX_TOP_K, SamplingDefaults, check_range
from batchgen.paths import has_file


def sampling_defaults(directory: Path, temperature: float | None = None) -> SamplingDefaults:
    """Those of `directory/generation_config.json`, where it has them; `do_sample` false is
    temperature 0, and `temperature` (of the command line) is above both.

    Raises UserError for a value that cannot be.
    """
    path = directory / "generation_config.json"
    if not has_file(path):
        found = SamplingDefaults()
    else:
        found = _read(Fields(path, read_json_object(path, "generation defaults")))
    return found if temperature is None else replace(found, temperature=temperature)


def _read(fields: Fields) -> SamplingDefaults:
    own = SamplingDefaults()
    temperature = _number(fields, "temperature", own.temperature)
    return SamplingDefaults(
        temperature=temperature if fields.flag("do_sample", True) else 0.0,
        top_p=_number(fields, "top_p", own.top_p),
        top_k=max(0, fields.integer("top_k", own.top_k, low=-1, high=MAX_TOP_K)),
        min_p=_number(fields, "min_p", own.min_p),
        repetition_penalty=_number(fields, "repetition_penalty", own.repetition_penalty),
    )


def _number(fields: Fields, name: str, default: float) -> float:
    value = fields.values.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fields.error(name, f"must be a number, got {value!r:.60}")
    try:
        check_range(name, value)
    except ValueError as error:
        raise fields.error(name, str(error).split(" ", 1)[1]) from None
    return float(value)
