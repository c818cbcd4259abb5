"""Waiting for work and for results, on one event loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sitq.backends.sqlite._hints import Watch

__all__ = ["ResultWait", "WorkWait"]

_LOOK_AGAIN = (0.005, 0.02, 0.08, 0.32)
"""A hint may come before its commit (`enqueue_in`): looks, in seconds after each other, before it is given up."""
_JITTER = 0.0002  # seconds, for the reading thread to sleep: an event loop sleeps for whole milliseconds
_POLL_RESULTS = 1.0  # seconds


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


class ResultWait:
    """Waits for results: one look at the store serves all who wait."""

    def __init__(self, watch: Watch, read: Callable[[list[str]], Awaitable[dict[str, Any]]]) -> None:
        self.watch = watch
        self._read = read
        self._waiting: dict[str, set[asyncio.Future[Any]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, task_id: str, timeout: float) -> Any:
        """Return the result of a task, or None after `timeout` seconds."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, set()).add(future)
        self.watch.poke()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait([future], timeout=timeout)
            return future.result() if future.done() else None
        finally:
            self._forget(task_id, future)

    def _forget(self, task_id: str, future: asyncio.Future[Any]) -> None:
        future.cancel()
        futures = self._waiting.get(task_id, set())
        futures.discard(future)
        if not futures:
            self._waiting.pop(task_id, None)
        if not self._waiting and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> None:
        while self._waiting:
            await self.watch.wait(_POLL_RESULTS)
            try:
                found = await self._read(list(self._waiting))
            except Exception as error:  # noqa: BLE001 (all who wait hear of it)
                self._fail(error)
                break
            for task_id, result in found.items():
                for future in self._waiting.pop(task_id, ()):
                    if not future.done():
                        future.set_result(result)
        self._looking = None

    def _fail(self, error: Exception) -> None:
        for future in [future for futures in self._waiting.values() for future in futures]:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()
