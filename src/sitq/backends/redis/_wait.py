"""Waiting for work and for results: one connection per handle on which the server speaks first.

The script publishes on the handle's own channel, and only to handles that have left word. What is published while the
connection is down is lost: so after each reconnect everybody looks for himself.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from sitq.backends._results import Waiting
from sitq.backends.redis._link import abandon, connect, end, is_lost
from sitq.backends.redis._settings import Settings
from sitq.core import Result
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
        self.connects = 0
        self._settings = settings
        self._channel = channel
        self._task: asyncio.Task[None] | None = None
        self.connection: AbstractConnection | None = None

    def start(self) -> None:
        """Begin to listen, unless that has begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name=f"listen to {self._channel}")

    async def close(self) -> None:
        """Listen no more."""
        task, self._task = self._task, None
        await end(task)

    def abandon(self) -> None:
        """Close the connection after its event loop."""
        if self.connection is not None:
            abandon(self.connection)

    async def _serve(self) -> None:
        while True:
            with suppress(RedisError, OSError, StopIteration):
                await self._listen()
            self.heard.clear()
            await asyncio.sleep(random.uniform(0.05, 0.2))  # noqa: S311 (others were cut off as well)

    async def _listen(self) -> None:
        connection = self.connection = await self._settings.connection()
        try:
            await connect(connection)
            await connection.send_command("SUBSCRIBE", self._channel)
            await connection.read_response()
            self.heard.set()
            self.connects += 1
            self._look_again()
            is_tested = False
            while True:
                message = await connection.read_response(timeout=_QUIET)
                if message is not None:
                    is_tested = False
                    self._hear(message)
                elif is_tested or is_lost(connection):
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
    """Return when `look` says that there is work, or the script gives a sign; after `timeout` seconds at the latest.

    `look` takes for how long to leave word, and tells in how many seconds there may be work. It is not asked again
    after a sign, which would be a round trip more: a reserve that finds nothing leads to the next wait, and its look.
    """
    deadline = time.monotonic() + timeout
    event = listener.events.setdefault(worker_id, asyncio.Event())
    listener.start()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        event.clear()
        connects = listener.connects  # after a new one everybody looks again: what was said meanwhile is lost
        due_in = await look(left)
        if due_in is not None and due_in <= 0:
            return
        left = min(deadline - time.monotonic(), left if due_in is None else due_in)
        if not listener.heard.is_set():
            left = min(left, _POLL_DEAF)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left, 0)):
                await event.wait()
                if listener.connects == connects:
                    return


class ResultWait(Waiting):
    """Waits for what the listener says has ended, and now and then looks at all that is waited for."""

    def __init__(
        self, listener: Listener, read: Callable[[list[str]], Awaitable[tuple[dict[str, Result], float | None]]]
    ) -> None:
        super().__init__()
        self._listener = listener
        self._read = read
        self._to_read: dict[str, None] = {}
        self._poke = asyncio.Event()
        self._again_in = _POLL_RESULTS
        listener.ended = self._ended

    async def close(self) -> None:
        """End the waits with an error."""
        self._fail(BackendError("the store was closed: connect to it again"))
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def _wanted(self, task_id: str) -> None:
        self._listener.start()
        self._ended([task_id])

    def _ended(self, task_ids: Sequence[str]) -> None:
        """Read these results; all, when it is not known which."""
        self._to_read.update(dict.fromkeys(task_ids or self._waiting))
        self._poke.set()

    async def _look(self) -> Mapping[str, Result]:
        if not self._to_read:
            await self._until_poked()
        some = list(self._to_read)[:_AT_ONCE]
        for task_id in some:
            del self._to_read[task_id]
        wanted = [task_id for task_id in some if task_id in self._waiting]
        if not wanted:
            return {}
        found, soonest = await self._read(wanted)
        self._again_in = min(self._again_in, _POLL_RESULTS if soonest is None else max(soonest, 0.001))
        return found

    async def _until_poked(self) -> None:
        self._poke.clear()
        try:
            async with asyncio.timeout(self._again_in if self._listener.heard.is_set() else _POLL_DEAF):
                await self._poke.wait()
        except TimeoutError:
            self._to_read.update(dict.fromkeys(self._waiting))
            self._again_in = _POLL_RESULTS
