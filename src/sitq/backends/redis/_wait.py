"""Waiting for work and for results: one connection per handle on which the server speaks first.

The script publishes on the handle's own channel, and only to handles that have left word. What is published while the
connection is down is lost: so after each reconnect everybody looks for himself.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from sitq.backends.redis._link import Settings, abandon, connect
from sitq.exceptions import BackendError

__all__ = ["Listener", "ResultWait", "wait_for_work"]

_QUIET = 15.0  # seconds without a word after which the connection is tested
_POLL_RESULTS = 5.0
_POLL_DEAF = 0.5  # while there is no connection to listen on
_AT_ONCE = 500


class Listener:
    """Hears what the script publishes for this handle."""

    def __init__(self, settings: Settings, channel: str) -> None:
        self.heard = asyncio.Event()
        self.events: dict[str, asyncio.Event] = {}
        self.ended: Callable[[Sequence[str]], None] = lambda _: None
        self.reconnects = 0
        self._settings = settings
        self._channel = channel
        self._task: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None

    def start(self) -> None:
        """Begin to listen, unless that has begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name=f"listen to {self._channel}")

    async def close(self) -> None:
        """Listen no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def abandon(self) -> None:
        """Close the connection after its event loop."""
        if self._connection is not None:
            abandon(self._connection)

    async def _serve(self) -> None:
        while True:
            with suppress(RedisError, OSError, StopIteration):
                await self._listen()
            self.heard.clear()
            self.reconnects += 1
            await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311 (others were cut off as well)

    async def _listen(self) -> None:
        connection = self._connection = self._settings.connection()
        try:
            await connect(connection)
            await connection.send_command("SUBSCRIBE", self._channel)
            await connection.read_response()
            self.heard.set()
            self._look_again()
            is_tested = False
            while True:
                message = await connection.read_response(timeout=_QUIET)
                if message is not None:
                    is_tested = False
                    self._hear(message)
                elif is_tested:
                    return  # half open: the other side is gone and has not said so
                else:
                    is_tested = True
                    await connection.send_command("PING")
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    def _look_again(self) -> None:
        for event in self.events.values():
            event.set()
        self.ended(())

    def _hear(self, message: Any) -> None:
        if not isinstance(message, list) or message[0] != b"message":
            return
        text = message[2].decode()
        if text[0] == "d":
            self.ended(text[1:].split("\n"))
        elif (event := self.events.get(text[1:])) is not None:
            event.set()


async def wait_for_work(
    listener: Listener, worker_id: str, look: Callable[[float], Awaitable[float | None]], timeout: float
) -> None:
    """Return when `look` says that there is work, after `timeout` seconds at the latest.

    `look` takes for how long to leave word, and tells in how many seconds there may be work. It is asked again when the
    script has given a sign, and after a reconnect.
    """
    deadline = time.monotonic() + timeout
    event = listener.events.setdefault(worker_id, asyncio.Event())
    listener.start()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        event.clear()
        due_in = await look(left)
        if due_in is not None and due_in <= 0:
            return
        left = min(deadline - time.monotonic(), left if due_in is None else due_in)
        if not listener.heard.is_set():
            left = min(left, _POLL_DEAF)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left, 0)):
                await event.wait()


class ResultWait:
    """Waits for results: one look at the store serves all who wait."""

    def __init__(
        self, listener: Listener, read: Callable[[list[str]], Awaitable[tuple[dict[str, Any], float | None]]]
    ) -> None:
        self._listener = listener
        self._read = read
        self._waiting: dict[str, set[asyncio.Future[Any]]] = {}
        self._to_read: dict[str, None] = {}
        self._poke = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        listener.ended = self._ended

    async def wait(self, task_id: str, timeout: float) -> Any:
        """Return the result of a task, or None after `timeout` seconds."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, set()).add(future)
        self._listener.start()
        self._ended([task_id])
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="look for results")
        try:
            await asyncio.wait([future], timeout=timeout)
            return future.result() if future.done() else None
        finally:
            self._forget(task_id, future)

    async def close(self) -> None:
        """End the waits with an error."""
        self._fail(BackendError("the store was closed: connect to it again"))
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def _ended(self, task_ids: Sequence[str]) -> None:
        """Read these results; all, when it is not known which."""
        self._to_read.update(dict.fromkeys(task_ids or self._waiting))
        self._poke.set()

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
        again_in: float = _POLL_RESULTS
        while self._waiting:
            if not self._to_read:
                self._poke.clear()
                pause = again_in if self._listener.heard.is_set() else _POLL_DEAF
                try:
                    async with asyncio.timeout(pause):
                        await self._poke.wait()
                except TimeoutError:
                    self._to_read.update(dict.fromkeys(self._waiting))
                    again_in = _POLL_RESULTS
            wanted = [task_id for task_id in list(self._to_read)[:_AT_ONCE] if task_id in self._waiting]
            for task_id in list(self._to_read)[:_AT_ONCE]:
                del self._to_read[task_id]
            if not wanted:
                continue
            try:
                found, soonest = await self._read(wanted)
            except Exception as error:  # noqa: BLE001 (all who wait hear of it)
                self._fail(error)
                break
            again_in = min(again_in, _POLL_RESULTS if soonest is None else max(soonest, 0.001))
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
