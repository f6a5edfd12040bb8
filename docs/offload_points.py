"""Published speeds of weights and KV on host and disk beside simulated ones: a table for
docs/cost-model.md. We fitted nothing to them; FlexGen's constants are its authors' fit.

python docs/offload_points.py
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from batchgen.sim.run import simulate
from batchgen.simjob import SimJob

OUTPUT = 32
# OPT has a plain MLP of 4 h; a gated one of 8/3 h has as many parameters and FLOPs.
SHAPES = {"OPT-30B": (7168, 48, 56), "OPT-175B": (12288, 96, 96)}
"""Hidden size, layers, heads (Zhang et al., 2022)."""

DISK = {"weights": "disk", "disk_share": "0.5", "kv": "disk"}
MOST_TOKENS = {"OPT-30B": 24576, "OPT-175B": 6144}
"""Prompt tokens of a GPU batch: 48 rows of 512, as FlexGen has it; 12 of 512 instead of its 32,
because here more have no room beside two layers. The prompts of a block are one pass."""
T4 = {"cost.host_link": "0.879"}
"""13.84 of 15.75 GB/s: 12.89 in FlexGen's cost model, whose GB are 2^30 bytes. The disk reads
2 GB/s and writes 1 (its paper)."""
FLEXGEN = {"cost.cpu_attention_bytes_per_s": "12.3e9", "cost.engine": "0.405"}
"""Constants of FlexGen's cost_model.py (Apache-2.0), which its authors fitted to runs of theirs on
this machine, perhaps to these points too: attention on the CPU 12.3 GFLOP/s, a FLOP for a byte of
KV in halves (each is made a float first); products of prompts 21.24 TFLOP/s, of 52.5 that large
ones reach here. How its copies overlap is the system's (`cost.block_schedule`)."""
SYSTEMS = {"FlexGen": "flexgen", "ZeRO-Inference": "zero-inference"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A published speed: tokens generated in a second, prefill included."""

    system: str
    model: str
    prompt: int
    rows: int
    tokens_per_s: float
    plan: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def gpu_batches(self) -> int:
        """As few as hold the prompts of all rows."""
        if self.system != "FlexGen":
            return 1
        return -(-self.rows * self.prompt // MOST_TOKENS[self.model])


# FlexGen (ICML 2023): table 2 and its repository's table of batch sizes for prompts of 512, table
# 13 for 1,024. Weights on GPU and host, the rest on disk: 20 and 80 % of OPT-30B (here all on the
# host), 0 and 50 % of OPT-175B; KV on the host, on the disk.
POINTS = (
    Point(system="FlexGen", model="OPT-30B", prompt=512, rows=144, tokens_per_s=7.32),
    Point(system="FlexGen", model="OPT-30B", prompt=1024, rows=80, tokens_per_s=3.50),
    Point(system="FlexGen", model="OPT-175B", prompt=512, rows=256, plan=DISK, tokens_per_s=0.69),
    Point(system="FlexGen", model="OPT-175B", prompt=1024, rows=144, plan=DISK, tokens_per_s=0.35),
    Point(system="ZeRO-Inference", model="OPT-30B", prompt=512, rows=4, tokens_per_s=0.60),
    Point(system="ZeRO-Inference", model="OPT-30B", prompt=1024, rows=2, tokens_per_s=0.29),
)


def write_model(name: str, folder: Path) -> str:
    """A model of the size of an OPT, as the folder of a config."""
    hidden, layers, heads = SHAPES[name]
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": round(8 * hidden / 3),
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }
    place = folder / name.lower()
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


def simulated(point: Point, folder: Path, **more: str) -> float:
    """Tokens generated in a second."""
    trace = folder / "trace.jsonl"
    row = json.dumps({"prompt_tokens": point.prompt, "output_tokens": OUTPUT})
    trace.write_text(f"{row}\n" * point.rows)
    plan = {f"plan.{name}": value for name, value in point.plan.items()}
    if point.system == "FlexGen":
        plan["plan.gpu_batches"] = str(point.gpu_batches)
        plan["plan.token_budget"] = str(point.rows * point.prompt)
    costs = T4 | (FLEXGEN if point.system == "FlexGen" else {})
    job = SimJob(
        trace=str(trace),
        model=write_model(point.model, folder),
        gpu="t4",
        gpus=1,
        layout="dp1",
        policy=SYSTEMS[point.system],
        overrides=tuple({**plan, "plan.max_num_seqs": str(point.rows), **costs, **more}.items()),
    )
    end_ps = int(simulate(job).rows["end_ps"].max())
    return point.rows * OUTPUT / (end_ps / 1e12)


def main() -> None:
    print("| system | model | prompt | rows | published | simulated | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for point in POINTS:
            found = simulated(point, Path(folder))
            print(
                f"| {point.system} | {point.model} | {point.prompt} | {point.rows} | "
                f"{point.tokens_per_s:.2f} | {found:.2f} | {found / point.tokens_per_s:.2f} |"
            )


if __name__ == "__main__":
    main()
