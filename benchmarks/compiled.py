"""What the compiled CPU operations earn over torch, case by case, in one run. Measures no pass.

    python benchmarks/compiled.py [--threads N] [--only TEXT] [--large-groups] [--output PATH]

Prints a JSON object: per case the lower quartile of both times and their ratio. Keep the machine
quiet: threads of one operation wait for each other.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np

SECONDS = 0.3  # per operation and case
WORTH = 1.3  # times faster than torch, or it should not be there
LAYERS = 6  # taken in turn, so that caches help as much as in a pass

# heads, kv heads, head_dim; decoding contexts; (start, length) of chunks
ATTENTION: list[tuple[str, tuple[int, int, int], list[int], list[tuple[int, int]]]] = [
    ("decode 128 rows of 64 to 192", (8, 4, 64), [64 + i for i in range(128)], []),
    ("decode 128 rows of 128 to 382", (8, 2, 64), [128 + 2 * i for i in range(128)], []),
    ("decode 16 rows of 1000", (32, 8, 128), [1000] * 16, []),
    ("decode 16 rows of 1000, 16 heads share", (32, 2, 128), [1000] * 16, []),
    ("decode 1 row of 1000", (32, 8, 128), [1000], []),
    ("32 ragged prompts of 20 to 299", (4, 2, 32), [], [(0, 20 + 9 * i) for i in range(32)]),
    ("2 prompts of 512", (16, 8, 128), [], [(0, 512)] * 2),
    ("chunk of 512 behind 1024", (16, 8, 128), [], [(1024, 512)]),
    ("32 decodes of 300 and a prompt of 200", (16, 8, 128), [300] * 32, [(0, 200)]),
]
# hidden, width, experts, top k
EXPERTS = [
    ("small", (128, 80, 16, 2)),
    ("medium", (512, 256, 16, 4)),
    ("wide", (768, 256, 64, 6)),
]
# outputs, inputs
LINEAR = [("qkv", (768, 512)), ("out", (512, 512)), ("down", (512, 1536)), ("head", (4096, 512))]
TOKENS = (1, 16, 64, 96, 128, 1024)


def attention_cases(dtype: Any) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Name, in torch, compiled."""
    import torch

    from batchgen.exec.arena import KvArena
    from batchgen.exec.attention import Backend, Heads
    from batchgen.exec.attention.compiled import CompiledBackend
    from batchgen.exec.attention.reference import TorchBackend
    from batchgen.exec.batch import PassRows
    from batchgen.exec.config import KvLayout

    page = 64
    for name, (heads, kv_heads, head_dim), contexts, chunks in ATTENTION:
        starts, lengths = np.array([(n - 1, 1) for n in contexts] + chunks, dtype=np.int64).T
        tokens = int(lengths.sum())
        rows = PassRows(
            slots=np.arange(len(starts)),
            starts=starts,
            lengths=lengths,
            num_decodes=len(contexts),
            token_ids=np.zeros(tokens, dtype=np.int64),
            wanted=np.zeros(0, dtype=np.int64),
        )
        arena = KvArena(
            "benchmark",
            int((-(-rows.ends // page)).sum()),
            KvLayout(layers=LAYERS, parts=2, heads=kv_heads, head_dim=head_dim),
            page_tokens=page,
            dtype=dtype,
        )
        arena.storage.copy_(torch.randn(arena.storage.shape))
        for slot, end in enumerate(rows.ends.tolist()):
            arena.reserve(slot, end)
        q = torch.randn(tokens, heads, head_dim).to(dtype)
        how = Heads(scale=head_dim**-0.5)

        def case(
            backend: Backend,
            rows: PassRows = rows,
            arena: KvArena = arena,
            q: Any = q,
            how: Heads = how,
        ) -> Callable[[], None]:
            prepared = backend.prepare(arena, rows)

            def run() -> None:
                for layer in range(LAYERS):
                    backend.run(arena, layer, q, prepared, how)

            return run

        yield f"attention: {name}", case(TorchBackend()), case(CompiledBackend())


def expert_cases(dtype: Any) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Name, in torch, compiled: with packed weights where the arithmetic packs them (else large
    groups of bfloat16 are left to torch)."""
    import torch

    from batchgen.exec.arithmetic import Arithmetic
    from batchgen.exec.config import RoutingConfig
    from batchgen.exec.mlp import SparseMlp
    from batchgen.exec.routing import Router

    fast, plain_torch = Arithmetic(dtype, "cpu"), Arithmetic(dtype, "cpu")
    plain_torch.compiled = False

    for name, (hidden, width, experts, top_k) in EXPERTS:
        layers = [
            SparseMlp(
                arithmetic=fast,
                router=Router(
                    config=RoutingConfig(),
                    experts_per_token=top_k,
                    arithmetic=fast,
                    weight=(torch.randn(experts, hidden) * hidden**-0.5).to(dtype),
                ),
                gate_up=(torch.randn(experts, 2 * width, hidden) * hidden**-0.5).to(dtype),
                down=(torch.randn(experts, hidden, width) * width**-0.5).to(dtype),
            )
            for _ in range(LAYERS)
        ]
        plain = [dataclasses.replace(layer, arithmetic=plain_torch) for layer in layers]
        layers = [
            dataclasses.replace(
                layer,
                router=dataclasses.replace(layer.router, weight=fast.pack(layer.router.weight)),
                gate_up=fast.pack(layer.gate_up, gated=True),
                down=fast.pack(layer.down),
            )
            for layer in layers
        ]
        for tokens in TOKENS:
            x = torch.randn(tokens, hidden).to(dtype)

            def run(chosen: list[SparseMlp], x: Any = x) -> None:
                for layer in chosen:
                    layer(x)

            yield (
                f"experts: {name}, {tokens} tokens",
                lambda run=run, plain=plain: run(plain),
                lambda run=run, layers=layers: run(layers),
            )


def small_cases(dtype: Any) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Name, in torch, compiled: what lies between the products of a layer, in bfloat16 alone."""
    import torch

    from batchgen.exec.arena import KvArena
    from batchgen.exec.arithmetic import Arithmetic
    from batchgen.exec.compiled import SWITCH
    from batchgen.exec.config import AttentionConfig, KvLayout
    from batchgen.exec.layers import GroupedAttention, add_rms_norm

    if dtype != torch.bfloat16:
        return
    heads, kv_heads, head_dim, hidden, eps, page = 8, 4, 64, 512, 1e-6, 64
    norm = torch.ones(head_dim).to(dtype)
    attention = GroupedAttention(
        config=AttentionConfig(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=head_dim**-0.5
        ),
        eps=eps,
        arithmetic=Arithmetic(dtype, "cpu"),
        qkv=torch.empty(0),
        out=torch.empty(0),
        q_norm=norm,
        k_norm=norm,
    )

    def in_torch(run: Callable[[], None]) -> Callable[[], None]:
        def switched() -> None:
            os.environ[SWITCH] = "0"
            try:
                run()
            finally:
                del os.environ[SWITCH]

        return switched

    for tokens in (16, 128, 1024):
        layout = KvLayout(layers=LAYERS, parts=2, heads=kv_heads, head_dim=head_dim)
        arena = KvArena("benchmark", tokens, layout, page_tokens=page, dtype=dtype)
        x, added = (torch.randn(tokens, hidden).to(dtype) for _ in range(2))
        weight = torch.ones(hidden).to(dtype)
        qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim).to(dtype)
        angles = torch.rand(tokens, 1, head_dim // 2)
        batch: Any = SimpleNamespace(
            pages=torch.arange(tokens),
            offsets=torch.arange(tokens) % page,
            cos=angles.cos(),
            sin=angles.sin(),
        )

        def norms(x: Any = x, added: Any = added, weight: Any = weight) -> None:
            for _ in range(LAYERS):
                add_rms_norm(x, added, weight, eps)

        def place(qkv: Any = qkv, arena: KvArena = arena, batch: Any = batch) -> None:
            for layer in range(LAYERS):
                attention._place(qkv, arena, layer, batch)

        yield f"add and norm: {tokens} tokens", in_torch(norms), norms
        yield f"norm, rotary, KV write: {tokens} tokens", in_torch(place), place


def linear_cases(dtype: Any) -> Iterator[tuple[str, Callable[[], Any], Callable[[], Any]]]:
    """Name, in torch, with packed weights; none where nothing is packed."""
    import torch

    from batchgen.exec.arithmetic import Arithmetic

    arithmetic = Arithmetic(dtype, "cpu")
    for name, (outputs, inputs) in LINEAR:
        plain = [torch.randn(outputs, inputs).to(dtype) for _ in range(LAYERS)]
        packed = [arithmetic.pack(weight) for weight in plain]
        if packed[0] is plain[0]:
            return
        for tokens in TOKENS:
            x = torch.randn(tokens, inputs).to(dtype)

            def run(weights: list[Any], x: Any = x) -> None:
                for weight in weights:
                    arithmetic.linear(x, weight)

            yield (
                f"linear: {name}, {tokens} tokens",
                lambda run=run, plain=plain: run(plain),
                lambda run=run, packed=packed: run(packed),
            )


def in_turns(*runs: Callable[[], Any]) -> list[float]:
    """Seconds of a layer of each, the lower quartile, measured in turns: a neighbour on the machine
    that comes or goes meets all of them."""
    from batchgen.exec.stopwatch import Stopwatch

    for run in runs:
        run()  # the first call pays for caches and allocations
    samples: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + len(runs) * SECONDS
    while len(samples[0]) < 3 or time.perf_counter() < end:
        for run, own in zip(runs, samples, strict=True):
            begin = time.perf_counter()
            run()
            own.append(time.perf_counter() - begin)
    return [Stopwatch().typical(own) / LAYERS for own in samples]


def measure(threads: int, only: str) -> list[dict[str, Any]]:
    import torch

    torch.set_num_threads(threads)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        for cases in (attention_cases, expert_cases, linear_cases, small_cases):
            for name, plain, compiled in cases(dtype):
                if only not in f"{name} {dtype}":
                    continue
                in_torch_s, compiled_s = in_turns(plain, compiled)
                results.append(
                    {
                        "case": name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "in_torch_s": in_torch_s,
                        "compiled_s": compiled_s,
                        "ratio": in_torch_s / compiled_s,
                    }
                )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--large-groups",
        action="store_true",
        help="leave no group of plain experts to torch (with BATCHGEN_PRODUCTS=torch)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="cases with it in name or dtype, as in 'experts:'",
    )
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    from batchgen.cli.torch_threads import calm_threads

    calm_threads()
    import torch

    from batchgen.exec import mlp
    from batchgen.exec.compiled import is_compiled

    if options.large_groups:
        mlp.LARGE_GROUP = sys.maxsize
    if not is_compiled(torch.float32):
        parser.error("there is no C++ compiler here")
    with torch.inference_mode():
        cases = measure(options.threads, options.only)
    result = {
        "benchmark": "compiled",
        "machine": machine.describe(),
        "commit": machine.commit(),
        "load_average": os.getloadavg()[0],
        "threads": options.threads,
        "worth": WORTH,
        "cases": cases,
        "below_worth": [c["case"] + " " + c["dtype"] for c in cases if c["ratio"] < WORTH],
    }
    machine.publish(result, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
