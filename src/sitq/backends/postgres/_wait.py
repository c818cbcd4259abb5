"""Waiting for work, on one event loop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from sitq.backends.postgres._listen import Ear

__all__ = ["WorkWait"]

_LOOK_AGAIN = (0.005, 0.02, 0.08, 0.32)
"""A hint may come before its commit (`enqueue_in`): looks, in seconds after each other, before it is given up."""


class WorkWait:
    """Waits for work; keeps its ear from one wait to the next, so that nothing between them is missed."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._again = list(_LOOK_AGAIN)  # a hint that came before the ear was there went unheard

    async def wait(self, next_work: Callable[[], Awaitable[float | None]], timeout: float) -> None:
        """Return after a hint, or when `next_work` says so, after `timeout` seconds at the latest."""
        deadline = time.monotonic() + timeout
        while True:
            due_in = await next_work()
            left = deadline - time.monotonic()
            if left <= 0 or (due_in is not None and due_in <= 0):
                return
            pause = min([left, *self._again[:1], *([] if due_in is None else [due_in])])
            self._again = self._again[1:]
            if await self._ear.wait(pause):
                self._again = list(_LOOK_AGAIN)
                return  # to look first would be a round trip more, and to reserve nothing costs the server no more
