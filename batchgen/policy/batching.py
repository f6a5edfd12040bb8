"""Batching parts: what a pass holds. Rows are admitted already; this is about their prompts."""

from __future__ import annotations

from typing import ClassVar

from batchgen.policy.base import BatchingPart


class Chunks(BatchingPart):
    """Decodes first, then prompts in admission order, cut to fill the token budget (Sarathi,
    vLLM)."""


class WholePrompts(BatchingPart):
    """Prompts run whole, beside the decodes, as many as the token budget holds (Orca). Decodes
    count: the first prompt is cut if it exceeds what they leave."""

    whole = True


class StaticPrompts(WholePrompts):
    """Prompts run whole, padded to the longest of the pass; rows that ended keep their place and
    their pages, as dead weight, until the last row of the batch has ended."""

    static = True
    needs: ClassVar[frozenset[str]] = frozenset({"padding"})
