"""DeepSeek-V3 and R1: as V2, with a sigmoid router whose choice is corrected by a learned bias, and
layers behind the last one that predict further tokens, which are not read."""

from __future__ import annotations

from typing import Any

from batchgen.exec.config import LayerConfig, ModelConfig, RoutingConfig
from batchgen.exec.families import building, deepseek, parsing
from batchgen.exec.families.base import Family
from batchgen.fields import MAX_LAYERS, Fields


def read(fields: Fields) -> ModelConfig:
    fields.choice("topk_method", "noaux_tc", ("noaux_tc",))
    fields.choice("scoring_func", "sigmoid", ("sigmoid",))
    routing = RoutingConfig(
        score="sigmoid",
        normalise=fields.flag("norm_topk_prob", True),
        scaling=fields.number("routed_scaling_factor", 2.5),
        groups=fields.integer("n_group", 8),
        groups_kept=fields.integer("topk_group", 4),
        group_top=2,
        correction=True,
        float32=True,
    )
    interleaved = fields.flag("rope_interleave", True)
    attention = deepseek.latent_heads(fields, interleaved=interleaved)
    mlps = deepseek.mlps(fields, routing, first_dense=3)
    further = fields.integer("num_nextn_predict_layers", 0, low=0, high=MAX_LAYERS)
    return parsing.model_config(
        fields,
        "deepseek-v3",
        [LayerConfig(attention=attention, mlp=mlp) for mlp in mlps],
        parsing.rope(fields, attention.rope_dim),
        fp8_block=deepseek.fp8_block(fields),
        ignored=tuple(f"model.layers.{len(mlps) + i}." for i in range(further)),
    )


def sample(size: str) -> dict[str, Any]:
    return deepseek.sample(size) | {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,
    }


FAMILY = Family(
    name="deepseek-v3",
    architecture="DeepseekV3ForCausalLM",
    model_type="deepseek_v3",
    read=read,
    layer=building.layer,
    sample=sample,
    absent=("head_dim",),
)
