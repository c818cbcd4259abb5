"""Waiting for work and for results, on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sitq.backends.postgres._listen import Ear
from sitq.core import Result

__all__ = ["ResultWait", "WorkWait"]

_LOOK_AGAIN = (0.005, 0.02, 0.08, 0.32)
"""A hint may come before its commit (`enqueue_in`): looks, in seconds after each other, before it is given up."""
_POLL_RESULTS = 1.0  # seconds


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


class ResultWait:
    """Waits for results: one look at the store serves all who wait."""

    def __init__(self, ear: Ear, read: Callable[[list[str]], Awaitable[dict[str, Result]]]) -> None:
        self._ear = ear
        self._read = read
        self._waiting: dict[str, set[asyncio.Future[Result]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, task_id: str, timeout: float) -> Result | None:
        """Return the result of a task, or None after `timeout` seconds."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, set()).add(future)
        self._ear.nudge()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="sitq results")
        try:
            await asyncio.wait([future], timeout=timeout)
            return future.result() if future.done() else None
        finally:
            self._forget(task_id, future)

    def _forget(self, task_id: str, future: asyncio.Future[Result]) -> None:
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
            await self._ear.wait(_POLL_RESULTS)
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
