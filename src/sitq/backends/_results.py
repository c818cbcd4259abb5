"""Waiting for results on one event loop: one look at the store serves all who wait there."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, Protocol, TypeVar

from sitq.core import Result

__all__ = ["ResultWait", "Waiting", "Watch"]

_POLL = 1.0  # seconds: a hint may get lost


class Watch(Protocol):
    """An ear for hints that tasks have ended."""

    def poke(self) -> None:
        """Make the next wait return at once."""

    async def wait(self, timeout: float) -> bool:
        """Return after a hint, or after `timeout` seconds; True after a hint."""


W = TypeVar("W", bound=Watch)


class Waiting(ABC):
    """Who waits for which result. A store brings the look: a loop that runs while somebody waits."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[Result]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, task_id: str, timeout: float) -> Result | None:
        """Return the result of a task, or None after `timeout` seconds."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, set()).add(future)
        self._wanted(task_id)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_while_wanted(), name="sitq-results")
        try:
            await asyncio.wait([future], timeout=timeout)
            return future.result() if future.done() else None
        finally:
            self._forget(task_id, future)

    @abstractmethod
    def _wanted(self, task_id: str) -> None:
        """Somebody has come to wait: have the store looked at now."""

    @abstractmethod
    async def _look(self) -> Mapping[str, Result]:
        """Wait for a hint, for a time at the most, and return what the store has of the results in `_waiting`."""

    async def _look_while_wanted(self) -> None:
        while self._waiting:
            try:
                found = await self._look()
            except Exception as error:  # noqa: BLE001 (all who wait hear of it)
                self._fail(error)
                break
            for task_id, result in found.items():
                for future in self._waiting.pop(task_id, ()):
                    if not future.done():
                        future.set_result(result)
        self._looking = None

    def _forget(self, task_id: str, future: asyncio.Future[Result]) -> None:
        future.cancel()
        futures = self._waiting.get(task_id, set())
        futures.discard(future)
        if not futures:
            self._waiting.pop(task_id, None)
        if not self._waiting and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _fail(self, error: Exception) -> None:
        for future in [future for futures in self._waiting.values() for future in futures]:
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()


class ResultWait(Waiting, Generic[W]):
    """Waits with a watch; `read` looks for the results of some ids."""

    def __init__(self, watch: W, read: Callable[[list[str]], Awaitable[Mapping[str, Result]]]) -> None:
        super().__init__()
        self.watch = watch
        self._read = read

    def _wanted(self, task_id: str) -> None:
        self.watch.poke()

    async def _look(self) -> Mapping[str, Result]:
        await self.watch.wait(_POLL)
        return await self._read(list(self._waiting))
