"""Batch rows in and out. Pure: no torch, no model; the tokenizer is passed in."""

from __future__ import annotations
