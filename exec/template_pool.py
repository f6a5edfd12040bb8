"""A chat template for several threads: each that renders has a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Lock
from typing import Any

from batchgen.exec.templates import ChatTemplate, TemplateError


class TemplatePool:
    """As many processes as there were threads at once. Raises ValueError as ChatTemplate."""

    def __init__(self, source: str, variables: Mapping[str, str], now: datetime) -> None:
        self._given = source, dict(variables), now
        self._idle = [ChatTemplate(*self._given)]
        self._busy: list[ChatTemplate] = []
        self._lock = Lock()

    def render(self, conversations: Sequence[list[dict[str, Any]]]) -> list[str | TemplateError]:
        """The text of each conversation, or what is wrong with it. Raises Cancelled when another
        thread closes the pool meanwhile."""
        with self._lock:
            template = self._idle.pop() if self._idle else ChatTemplate(*self._given)
            self._busy.append(template)
        try:
            return template.render(conversations)
        finally:
            with self._lock:
                if template in self._busy:
                    self._busy.remove(template)
                    self._idle.append(template)

    def close(self) -> None:
        """End all processes; the next `render` starts one."""
        with self._lock:
            idle, busy = self._idle, self._busy
            self._idle, self._busy = [], []
        for template in busy:
            template.cancel()
        for template in idle:
            template.close()
