"""Watching the sentinels: a primary that was deposed takes writes for ten seconds and more, until somebody tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from sitq.backends.redis._link import abandon, end
from sitq.backends.redis._settings import Address, Settings, close_sentinels, connections_of

__all__ = ["Watch"]

_EVERY = 1.0  # seconds


class Watch:
    """Asks the sentinels again and again who the primary is, and cuts connections to anybody else."""

    def __init__(self, settings: Settings, connections: Callable[[], Sequence[AbstractConnection | None]]) -> None:
        self._settings = settings
        self._connections = connections
        self._sentinels: list[Redis] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name="watch the sentinels")

    async def close(self) -> None:
        """Watch no more."""
        task, self._task = self._task, None
        await end(task)

    def abandon(self) -> None:
        """Close the connections after their event loop."""
        for connection in connections_of(self._sentinels):
            abandon(connection)

    async def _serve(self) -> None:
        while True:
            self._sentinels = self._settings.sentinels()
            try:
                with suppress(RedisError, OSError):  # nobody knows it at the moment
                    while True:
                        self._cut_all_but(await self._settings.primary(self._sentinels))
                        await asyncio.sleep(_EVERY)
            finally:
                close_sentinels(self._sentinels)
            await asyncio.sleep(_EVERY)

    def _cut_all_but(self, primary: Address) -> None:
        for connection in self._connections():
            writer = getattr(connection, "_writer", None)
            if writer is not None and (getattr(connection, "host", None), getattr(connection, "port", None)) != primary:
                writer.transport.abort()  # whoever uses it finds that it is lost, and asks for the way anew
