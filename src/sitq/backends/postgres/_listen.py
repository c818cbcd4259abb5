"""Waking up: NOTIFY, heard by LISTEN on a connection of its own, which comes back when it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg

from sitq.backends.postgres._connect import Settings, connect
from sitq.backends.postgres._errors import is_lost

__all__ = ["NOTIFY", "Ear", "Listener", "channel"]

logger = logging.getLogger("sitq")

NOTIFY = "SELECT set_config('synchronous_commit', 'off', true), pg_notify(c, '') FROM unnest($1::text[]) AS c"

_PING = 15.0  # seconds: a connection that is half open looks like one on which nothing happens
_RETRY = (0.05, 5.0)


def channel(kind: str, schema: str) -> str:
    """Return the channel on which a schema's "work" or "done" is told."""
    return f"sitq_{kind}_{schema}"


class Ear:
    """What an event loop listens with: hears what comes between two waits as well."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._told = False

    def tell(self) -> None:
        """Tell that something has changed: the next wait returns at once."""
        self._told = True
        self._event.set()

    def poke(self) -> None:
        """Make the next wait return at once, for whoever waits to look."""
        self._event.set()

    async def wait(self, timeout: float) -> bool:
        """Return True after a hint, False after a poke or `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        told, self._told = self._told, False
        self._event.clear()
        return told


class Listener:
    """Listens for a store on its own connection, from the first `ear` on. Until it hears, those who wait poll."""

    def __init__(self, settings: Settings) -> None:
        self.connects = 0
        self._settings = settings
        self._ears: dict[str, Ear] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ear(self, kind: str) -> Ear:
        """Return the ear for "work" or "done", listening from now on."""
        ear = self._ears.get(kind)
        if ear is None:
            ear = self._ears[kind] = Ear()
            self._changed.set()
            if self._settings.listen and self._task is None:
                self._task = asyncio.create_task(self._supervise(), name="sitq listener")
        return ear

    def poke(self, kind: str) -> None:
        """Tell those who wait on this event loop."""
        if kind in self._ears:
            self._ears[kind].tell()

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _supervise(self) -> None:
        pause = _RETRY[0]
        while True:
            try:
                connection = await connect(self._settings, self._settings.listen_dsn)
                try:
                    self.connects += 1
                    pause = _RETRY[0]
                    await self._listen(connection)
                finally:
                    connection.terminate()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log = logger.info if is_lost(error) else logger.warning
                log("not listening to %s, polling: %s", self._settings.name, str(error) or type(error).__name__)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 (others lost theirs as well)
            pause = min(pause * 2, _RETRY[1])

    async def _listen(self, connection: Any) -> None:
        """Listen until the connection is lost."""
        connection.add_termination_listener(lambda _connection: self._changed.set())
        heard: set[str] = set()
        while not connection.is_closed():
            self._changed.clear()
            for kind in self._ears.keys() - heard:
                await connection.add_listener(channel(kind, self._settings.schema), self._hear(kind))
                heard.add(kind)
                self._ears[kind].poke()  # something may have been told while nobody listened
            try:
                async with asyncio.timeout(_PING):
                    await self._changed.wait()
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=_PING)

    def _hear(self, kind: str) -> Callable[..., None]:
        return lambda *_: self._ears[kind].tell()
