"""Catalog data (YAML, a source beside each number) and its loader. This file loads nothing."""

from __future__ import annotations
