"""What ran behind a row: model with its dtypes, GPU, layout, rows per rank. It predicts nothing.

What the table does not say is from the scripts of SemiAnalysis' InferenceX, which started most of
the engines (github.com/SemiAnalysisAI/InferenceX, benchmarks/: 70b_fp8_{h100,h200}_slurm.sh,
70b_fp8_b200_docker.sh, 70b_fp8_h200_trt_slurm.sh, 70b_fp4_b200_trt_slurm.sh, gptoss_fp4_*.sh,
dsr1_fp{4,8}_{b200,b300}.sh, dsr1_fp8_h200.sh): the dtype of KV and the token budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from batchgen.cost.capacity import capacity
from batchgen.cost.silicon.rows import Row
from batchgen.errors import UserError
from batchgen.hardware import GpuSpec, load_gpu
from batchgen.layout import Layout
from batchgen.model import ModelSpec, load_model

LINEAR = "linear attention"
SPARSE = "sparse attention"
# Models whose attention the cost model cannot express (model cards).
NOT_EXPRESSED = {"Qwen3.5-397B-A17B": LINEAR, "GLM-5": SPARSE}
_QUANTISED = ("-NVFP4", "-FP8")  # endings of names of the same model in other weights
_SAME = {"deepseek-v3": "deepseek-r1"}  # one dump calls DeepSeek-R1 so (its ids begin with dsr1)
_HOPPER, _BLACKWELL = ("h100", "h200"), ("b200", "b300", "gb200")
# (engine, model): GPUs on which the scripts keep its KV in fp8; bf16 elsewhere.
_FP8_KV: dict[tuple[str, str], tuple[str, ...]] = {
    ("vllm", "llama-3.1-70b"): (*_HOPPER, *_BLACKWELL),
    ("trtllm", "llama-3.1-70b"): (*_HOPPER, *_BLACKWELL),
    ("vllm", "gpt-oss-120b"): _BLACKWELL,
    ("trtllm", "gpt-oss-120b"): _BLACKWELL,
    ("sglang", "deepseek-r1"): _BLACKWELL,
    ("vllm", "minimax-m2.5"): ("b300",),
}
# Beyond the scripts: where bf16 KV would not hold batches that ran, as their first tokens tell:
# (engine, model, precision). TensorRT-LLM: 128 rows of 2.2K tokens on one H100, first tokens after
# 1.6 s. MiniMax-M2.5 in NVFP4: 512 rows of 9K on four B200, after 2.6 s.
_HELD_IN_FP8 = (("trtllm", "qwen3-32b", "fp8"), ("vllm", "minimax-m2.5", "fp4"))
MEMORY_FRACTION = 0.9
# (engine, model, precision, GPU, GPUs): what the scripts give engines that memory binds.
_MEMORY_FRACTIONS = {
    ("sglang", "deepseek-r1", "fp8", "b200", 4): 0.95,
    **{("vllm", "minimax-m2.5", "fp8", "b200", gpus): 0.95 for gpus in (1, 2, 4, 8)},
    **{("vllm", "minimax-m2.5", "fp8", "h200", gpus): 0.95 for gpus in (1, 2, 4, 8)},
}
# Engines that admit a prompt when it fits, not its answer: rows that grow beyond the room give way
# and wait with part of their answer given.
FITS_NOW = ("vllm",)
MEAN_OF_DRAWN = 0.9  # of lengths between 0.8 and 1 of the named ones
TOKEN_BUDGET = 8192  # of a pass: the scripts of vLLM; default of the others
MOST_GPUS = 8  # that exchange hidden states over NVLink, GB200 too, whose nodes have four


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """`batch` rows per rank of attention ask for `prompt_tokens` and `output_tokens` each, in the
    mean. `admitted` of them have begun, `running` of those have room for their KV. `spread`:
    lengths differ from row to row."""

    engine: str
    model: ModelSpec
    gpu: GpuSpec
    layout: Layout
    batch: int
    running: int
    admitted: int
    prompt_tokens: float
    output_tokens: float
    spread: bool

    @property
    def generation(self) -> str:
        """GPUs whose corrections are common; others stand alone."""
        name = self.gpu.name
        return "Blackwell" if name in _BLACKWELL else "Hopper" if name in _HOPPER else name


def setup(row: Row) -> Setup:
    """Of an aggregated row; UserError where the catalog or the layout does not know it."""
    model = _with_dtypes(find_model(row.model), row)
    gpu = load_gpu(row.gpu)
    scripted = row.is_inferencex and gpu.name in _FP8_KV.get((row.backend, model.name), ())
    if scripted or (row.backend, model.name, row.precision) in _HELD_IN_FP8:
        model = replace(model, kv_dtype="fp8")
    layout, batch = parallelism(row, model)
    part = MEAN_OF_DRAWN if row.is_inferencex else 1.0
    prompt_tokens, output_tokens = part * row.prompt_tokens, part * row.output_tokens
    place = row.backend, model.name, row.precision, gpu.name, layout.gpus_per_engine
    sizes = capacity(
        model,
        gpu,
        layout,
        memory_fraction=_MEMORY_FRACTIONS.get(place, MEMORY_FRACTION),
        page_tokens=16,
        token_budget=TOKEN_BUDGET,
        gpus_per_node=MOST_GPUS,
    )
    running = max(1, min(batch, int(sizes.hbm_tokens // (prompt_tokens + output_tokens / 2))))
    fitting = int(sizes.hbm_tokens // prompt_tokens) if row.backend in FITS_NOW else running
    return Setup(
        engine=row.backend,
        model=model,
        gpu=gpu,
        layout=layout,
        batch=batch,
        running=running,
        admitted=max(running, min(batch, fitting)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        spread=row.is_inferencex,
    )


def find_model(path: str) -> ModelSpec:
    """The catalog's model of a Hugging Face path, whatever its weights; UserError if none is."""
    name = path.rsplit("/", 1)[-1]
    for ending in _QUANTISED:
        name = name.removesuffix(ending)
    model = load_model(name)
    return load_model(_SAME.get(model.name, model.name))


def _with_dtypes(model: ModelSpec, row: Row) -> ModelSpec:
    """Weights by the precision of the row; without one they are bf16. Four bits: all linear layers
    of a dense model, the experts of others, whose attention stays bf16 (cards of NVIDIA's NVFP4
    checkpoints). gpt-oss is as published whatever the row says."""
    if model.expert_dtype == "mxfp4":
        return model
    kinds = {"": "bf16", "bf16": "bf16", "fp8": "fp8", "fp4": "nvfp4"}
    if row.precision not in kinds:
        raise UserError(f"unknown precision '{row.precision}'", remedy="use bf16, fp8 or fp4")
    dtype = kinds[row.precision]
    linear = "bf16" if dtype == "nvfp4" and model.is_moe else dtype
    return replace(model, weight_dtype=linear, expert_dtype=dtype)


def parallelism(row: Row, model: ModelSpec) -> tuple[Layout, int]:
    """Layout and rows per rank, the miscoded repaired.

    Two codings of InferenceX rows name more GPUs than there were, as their ids tell ("tp8_ep8"):
    experts split g x g with attention over g^2 are g GPUs with EP g, and so are tp = attention_dp
    = g with EP g^2, whose attention is data-parallel. Raises UserError for a layout that is none.
    """
    tp, ranks = max(row.tp, 1), max(row.attention_dp, 1)
    ep, batch = max(row.ep, 1), row.batch
    if not model.is_moe:
        return _layout(tp, ranks, 1), batch
    if row.is_inferencex and ep > 1:
        if row.expert_tp == ep and tp * ranks == ep * ep:
            batch = batch if ranks == 1 else batch * ranks // ep
            return (_layout(ep, 1, ep) if ranks == 1 else _layout(1, ep, ep)), batch
        if tp == ranks and ep == tp * tp:
            return _layout(1, ranks, ranks), batch
    return _layout(tp, ranks, ep), batch


def _layout(tp: int, attention_dp: int, ep: int) -> Layout:
    try:
        return Layout(tp=tp, attention_dp=attention_dp, ep=ep)
    except ValueError as error:
        raise UserError(str(error)) from None
