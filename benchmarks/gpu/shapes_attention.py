"""Lines of the kernel table: attention over paged KV, from 1 GB of KV on, and prefill of 8K."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from cell import MATMUL, Cell, Made, tune_of

LAYERS = 4  # of the arena: pages of one layer do not lie side by side, as in a model's
LAYER = 2
PAGE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Paged:
    """KV of rows in an arena, in pages of any order."""

    storage: torch.Tensor
    tables: torch.Tensor
    slots: torch.Tensor


def paged(
    num_rows: int, most_keys: int, parts: int, kv_heads: int, head_dim: int, device: torch.device
) -> Paged:
    columns = -(-most_keys // PAGE)
    shape = (num_rows * columns, LAYERS, parts, kv_heads, PAGE, head_dim)
    storage = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_()
    pages = torch.randperm(num_rows * columns, device=device).to(torch.int32)
    slots = torch.randperm(num_rows, device=device).to(torch.int32)
    return Paged(storage=storage, tables=pages.view(num_rows, columns), slots=slots)


def gathered(kept: Paged) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, V, S, D] without pages, for torch."""
    pages = kept.tables[kept.slots.long()].long()
    rows = kept.storage[pages, LAYER].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)
    return rows[0].contiguous(), rows[1].contiguous()


def decode(
    num_rows: int,
    keys: int,
    heads: int,
    kv_heads: int,
    head_dim: int = 128,
    value_dim: int | None = None,
    ragged: bool = False,
) -> Cell:
    """`ragged`: contexts are drawn between one key and `keys`, as rows of a job are."""

    def make(device: torch.device, seed: int) -> Made:
        from batchgen.exec.kernels.decode_attention import decode_attention, decode_attention_work

        torch.manual_seed(seed)
        parts = 1 if value_dim else 2
        kept = paged(num_rows, keys, parts, kv_heads, head_dim, device)
        q = torch.randn(num_rows, heads, head_dim, dtype=torch.bfloat16, device=device)
        contexts = torch.full((num_rows,), keys, dtype=torch.int32, device=device)
        if ragged:
            contexts.random_(1, keys + 1)
        work = decode_attention_work(
            num_rows, int(contexts.sum()), heads, kv_heads, head_dim, value_dim=value_dim
        )
        other = None
        if not (value_dim or ragged):
            k, v = gathered(kept)
            query = q[:, :, None]

            def other() -> object:
                return functional.scaled_dot_product_attention(query, k, v, enable_gqa=True)

        return Made(
            call=lambda: decode_attention(
                q,
                kept.storage,
                LAYER,
                kept.tables,
                kept.slots,
                contexts,
                scale=head_dim**-0.5,
                value_dim=value_dim,
                max_context=keys,
            ),
            work=work,
            other=other,
        )

    # Absorbed latents of 128 heads have more FLOPs per byte than the chip: no share of the copy.
    by_flops = value_dim is not None and heads * (head_dim + value_dim) / head_dim > 180
    words = [f"{num_rows} x {keys}", f"{heads}/{kv_heads} of {head_dim}"]
    return Cell(
        kernel="decode_attention",
        shape=", ".join(words + ["ragged"] * ragged),
        make=make,
        target=None if by_flops else 0.8,
        other="" if value_dim or ragged else "sdpa without pages",
        **({"ceiling": MATMUL} if by_flops else {}),
    )


def prefill(length: int, prefix: int, heads: int, kv_heads: int, head_dim: int = 128) -> Cell:
    """One row of `length` new tokens behind `prefix` old ones; causal FLOPs count once."""

    def make(device: torch.device, seed: int) -> Made:
        from batchgen.exec.kernels.prefill_attention import (
            prefill_attention,
            prefill_attention_work,
        )

        torch.manual_seed(seed)
        kept = paged(1, prefix + length, 2, kv_heads, head_dim, device)
        q = torch.randn(length, heads, head_dim, dtype=torch.bfloat16, device=device)
        one = torch.zeros(1, dtype=torch.int32, device=device)
        k, v = gathered(kept)
        query = q.transpose(0, 1)[None].contiguous()
        causal = prefix == 0
        return Made(
            call=lambda: prefill_attention(
                q,
                kept.storage,
                LAYER,
                kept.tables,
                slots=kept.slots,
                starts=one + prefix,
                firsts=one,
                lengths=one + length,
                num_tokens=length,
                max_length=length,
                scale=head_dim**-0.5,
            ),
            work=prefill_attention_work([prefix], [length], heads, kv_heads, head_dim),
            other=(
                lambda: functional.scaled_dot_product_attention(
                    query, k, v, is_causal=True, enable_gqa=True
                )
            )
            if causal
            else None,
        )

    behind = f" behind {prefix}" if prefix else ""
    return Cell(
        kernel="prefill_attention",
        shape=f"{length}{behind}, {heads}/{kv_heads} of {head_dim}",
        make=make,
        ceiling=MATMUL,
        target=0.5,
        other="" if prefix else "sdpa without pages",
    )


CELLS = (
    decode(64, 4096, 32, 8),
    decode(128, 4096, 32, 4),
    decode(512, 1024, 32, 8),
    decode(128, 4096, 32, 8, ragged=True),
    decode(256, 4096, 16, 1, 576, 512),
    decode(256, 4096, 128, 1, 576, 512),
    prefill(8192, 0, 32, 8),
    prefill(8192, 0, 32, 4),
    prefill(2048, 6144, 32, 8),
)

# Longer tiles are fewer steps, more stages are more bytes in flight; both want shared memory.
DECODE_CHANGES = (
    {"TILE": 32, "num_stages": 4},
    {"TILE": 32, "num_stages": 6},
    {"TILE": 64, "num_stages": 2},
    {"TILE": 64, "num_stages": 4},
    {"TILE": 128, "num_stages": 2},
    {"TILE": 64, "num_warps": 2},
    {"TILE": 64, "num_warps": 8},
)
# Of 16 heads over latents, 66 % of the copy on an H200. Scores of a tile are 16 x 32, four columns
# of products: eight warps do them twice. Four do them once; 64 keys have work for eight, and half
# as many steps, each 36 products that wait for one another. Nothing spills.
FEW_LATENT_CHANGES = (
    {"num_warps": 4},
    {"TILE": 64, "num_stages": 2},
    {"num_warps": 4, "num_stages": 4},
    {"TILE": 64, "num_stages": 3},
    {"TILE": 64, "num_stages": 2, "num_warps": 4},
    {"TILE": 16, "num_stages": 4, "num_warps": 4},
    {"TILE": 16, "num_stages": 6, "num_warps": 2},
    {"programs": 8},
    {"num_warps": 4, "programs": 8},
)
LATENT_CHANGES = (
    {"TILE": 32, "num_stages": 3},
    {"TILE": 64, "num_stages": 2},
    {"TILE": 16, "num_stages": 4},
    {"num_warps": 4},
)
PREFILL_CHANGES = (
    {"BLOCK_M": 128, "TILE": 128, "num_stages": 2},
    {"BLOCK_M": 128, "TILE": 64, "num_stages": 2},
    {"BLOCK_M": 128, "TILE": 64, "num_stages": 4},
    {"BLOCK_M": 64, "TILE": 64, "num_warps": 4},
    {"BLOCK_M": 64, "TILE": 128, "num_warps": 4, "num_stages": 2},
)
TUNE = (
    tune_of(decode(64, 4096, 32, 8), DECODE_CHANGES),
    tune_of(decode(128, 4096, 32, 4), DECODE_CHANGES),
    tune_of(decode(256, 4096, 16, 1, 576, 512), FEW_LATENT_CHANGES),
    tune_of(decode(256, 4096, 128, 1, 576, 512), LATENT_CHANGES),
    tune_of(prefill(8192, 0, 32, 8), PREFILL_CHANGES),
)
