"""Model families that the executor runs: one file each, and one line here."""

from __future__ import annotations

from batchgen.exec.families import (
    deepseek_v2,
    deepseek_v3,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    qwen2,
    qwen3,
    qwen3_moe,
)
from batchgen.exec.families.base import Family
from batchgen.fields import Fields

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    mixtral.FAMILY,
    deepseek_v2.FAMILY,
    deepseek_v3.FAMILY,
    gpt_oss.FAMILY,
)
BY_NAME = {family.name: family for family in FAMILIES}


def find_family(fields: Fields) -> Family:
    """The family that a config.json names; DataError if there is none."""
    names = fields.values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise fields.error("architectures", "must be a list with the name of the model class")
    for family in FAMILIES:
        if family.architecture == names[0]:
            return family
    supported = ", ".join(sorted(family.architecture for family in FAMILIES))
    raise fields.error(
        "architectures", f"{names[0]!r:.80} is not supported", f"supported: {supported}"
    )
