"""Waiting for work, on one event loop."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable

from sitq.backends.sqlite._hints import Watch

__all__ = ["WorkWait"]

_LOOK_AGAIN = (0.005, 0.02, 0.08, 0.32)
"""A hint may come before its commit (`enqueue_in`): looks, in seconds after each other, before it is given up."""
_JITTER = 0.0002  # seconds, for the reading thread to sleep: an event loop sleeps for whole milliseconds


class WorkWait:
    """Waits for work; keeps its watch from one wait to the next, so that nothing between them is missed.

    Who found work after the last hint goes for the next at once; who came too late first looks, after a moment, so that
    many idle workers do not all ask for the file's one lock. A look costs 0.3 ms, its two ways to the reading thread
    included.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._again = list(_LOOK_AGAIN)  # a hint that came before the watch went unheard
        self._was_first = True
        self._after_hint = False

    def answered(self, found: bool) -> None:
        """Note whether a reserve has found something."""
        if self._after_hint:
            self._after_hint, self._was_first = False, found

    async def wait(self, next_work: Callable[[float], Awaitable[float | None]], timeout: float) -> None:
        """Return after a hint or when `next_work(jitter)` says so, after `timeout` seconds at the latest."""
        deadline = time.monotonic() + timeout
        jitter = 0.0
        while True:
            due_in = await next_work(jitter)
            left = deadline - time.monotonic()
            if left <= 0 or (due_in is not None and due_in <= 0):
                return
            pause = min([left, *self._again[:1], *([] if due_in is None else [due_in])])
            self._again, jitter = self._again[1:], 0.0
            if await self.watch.wait(pause):
                self._again = list(_LOOK_AGAIN)
                self._after_hint = True
                if self._was_first:
                    return
                jitter = random.uniform(0, _JITTER)  # noqa: S311
