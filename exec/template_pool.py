"""A chat template for several threads: each that renders has a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Condition
from typing import Any

from batchgen.exec.templates import ChatTemplate, TemplateError

PATIENCE_S = 0.1
"""As long as a process takes to start: so long a thread waits for one that is busy."""


class TemplatePool:
    """As many processes as threads needed at once. Raises ValueError as ChatTemplate."""

    def __init__(
        self, source: str, variables: Mapping[str, str], now: datetime, *, is_checked: bool = False
    ) -> None:
        self._given = source, dict(variables), now
        self._idle = [ChatTemplate(*self._given, is_checked=is_checked)]
        self._busy: list[ChatTemplate] = []
        self._changed = Condition()

    def render(self, conversations: Sequence[list[dict[str, Any]]]) -> list[str | TemplateError]:
        """The text of each conversation, or what is wrong with it. Raises Cancelled when another
        thread closes the pool meanwhile."""
        with self._changed:
            if self._busy:
                self._changed.wait_for(lambda: self._idle, PATIENCE_S)
            template = (
                self._idle.pop() if self._idle else ChatTemplate(*self._given, is_checked=True)
            )
            self._busy.append(template)
        try:
            return template.render(conversations)
        finally:
            with self._changed:
                if template in self._busy:
                    self._busy.remove(template)
                    self._idle.append(template)
                    self._changed.notify()

    def close(self) -> None:
        """End all processes; the next `render` starts one."""
        with self._changed:
            idle, busy = self._idle, self._busy
            self._idle, self._busy = [], []
        for template in busy:
            template.cancel()
        for template in idle:
            template.close()
