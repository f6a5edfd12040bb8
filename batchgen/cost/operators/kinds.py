"""The kinds of kernels, by name."""

from __future__ import annotations

from batchgen.cost.operators.attention import DECODE, PREFILL
from batchgen.cost.operators.base import Operator
from batchgen.cost.operators.collectives import COLLECTIVES
from batchgen.cost.operators.experts import EXPERTS
from batchgen.cost.operators.gemm import GEMM
from batchgen.cost.operators.latent import MLA_DECODE, MLA_PREFILL

OPERATORS: dict[str, Operator] = {
    one.name: one for one in (GEMM, DECODE, PREFILL, MLA_DECODE, MLA_PREFILL, EXPERTS, COLLECTIVES)
}
