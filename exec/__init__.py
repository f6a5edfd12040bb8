"""The torch executor: runs passes on a real device. Imports nothing: open modules by full path."""

from __future__ import annotations
