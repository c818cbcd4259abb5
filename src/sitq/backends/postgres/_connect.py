"""Connections: how to make one, a few to share, and one transaction as the statements see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from sitq.backends.postgres._errors import is_lost
from sitq.exceptions import BackendError

__all__ = ["DURABILITIES", "Clock", "Connections", "Settings", "Tx", "connect", "render", "transaction"]

DURABILITIES = ("relaxed", "full", "strict")  # each keeps what the one before it keeps

_CONNECT_TIMEOUT = 10.0
_COMMAND_TIMEOUT = 30.0  # a connection that is half open says nothing at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a store is to be used."""

    dsn: str
    listen_dsn: str | None = None
    schema: str = "sitq"
    durability: str = "full"
    pool_size: int = 4
    listen: bool = True
    migrate: bool = True
    retry_timeout: float = 30.0
    statement_cache_size: int = 100

    @property
    def is_pooled(self) -> bool:
        """Say whether each transaction may meet another session."""
        return self.statement_cache_size == 0

    @property
    def name(self) -> str:
        """What the store is called in messages: where it is, without password."""
        parts = urlsplit(self.dsn)
        place = parts.netloc.rpartition("@")[2]
        return f"postgresql://{place}{parts.path} (schema {self.schema})"


class Clock:
    """How many seconds the store's clock is ahead of the server's: tests move it. Clones share it."""

    __slots__ = ("offset",)

    def __init__(self) -> None:
        self.offset = 0.0


# The statements are made for their indexes and for nested loops. By its statistics PostgreSQL may think that reading a
# whole table is cheaper than 500 probes (at 50,000 rows it does), and that its compiler for expressions pays.
_PLANNER = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}
_BEGIN_READ_COMMITTED = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_POOLED = "; ".join([_BEGIN_READ_COMMITTED, *(f"SET LOCAL {name} = {value}" for name, value in _PLANNER.items())])


async def connect(settings: Settings, dsn: str | None = None) -> Any:
    """Connect to the server. Through a pooler (`statement_cache_size=0`) nothing is asked of the session."""
    session = {} if settings.is_pooled else _PLANNER
    return await asyncpg.connect(
        dsn or settings.dsn,
        timeout=_CONNECT_TIMEOUT,
        command_timeout=_COMMAND_TIMEOUT,
        statement_cache_size=settings.statement_cache_size,
        server_settings={"application_name": "sitq", **session},
    )


class Connections:
    """At most so many connections, made on demand, of which the last one given back is the next one taken.

    asyncpg's pool would ask the server to reset each session that is given back: a round trip more for every batch.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.pool_size)
        self._idle: list[Any] = []
        self._closed = False

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Any]:
        """Lend a connection. One that an error other than the server's has passed through is thrown away."""
        async with self._slots:
            if self._closed:
                raise BackendError("the store was closed: connect to it again")
            connection = self._pop() or await connect(self._settings)
            try:
                yield connection
            except asyncpg.PostgresError as error:
                self._take_back(connection, is_sound=not is_lost(error))
                raise
            except BaseException:  # cancelled on the way: what the server says next would answer another question
                connection.terminate()
                await asyncio.sleep(0)  # the socket is closed by the next turn of a loop that may be at its end
                raise
            self._take_back(connection, is_sound=True)

    def _take_back(self, connection: Any, is_sound: bool) -> None:
        if not is_sound or self._closed or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)

    def _pop(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def close(self) -> None:
        """Close what is idle now, and the rest when it is given back."""
        self._closed = True
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.close(timeout=2.0)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection.terminate()

    def abandon(self) -> None:
        """Close everything after the event loop, which can do it no more."""
        self._closed = True
        while self._idle:
            connection = self._idle.pop()
            transport = connection._transport
            with suppress(RuntimeError):
                connection.terminate()
            if getattr(transport, "_sock", None) is not None:
                transport._sock.close()
                transport._sock = None


@asynccontextmanager
async def transaction(connection: Any, settings: Settings) -> AsyncIterator[None]:
    """Run a transaction; its first round trip sets what a session that is not ours lacks."""
    await connection.execute(_BEGIN_POOLED if settings.is_pooled else _BEGIN_READ_COMMITTED)
    try:
        yield
    except Exception as error:
        if not is_lost(error):
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


# Time stands still for a statement. Asked for by the first part of each, since `now()` is the transaction's start.
_BEGIN = """
WITH RECURSIVE t AS MATERIALIZED (
    SELECT clock_timestamp() + make_interval(secs => $1) AS now, set_config('synchronous_commit', CASE
        WHEN $2 = 'off' THEN 'off'
        WHEN $2 = 'on' AND current_setting('synchronous_commit') = 'off' THEN 'on'
        ELSE current_setting('synchronous_commit') END, true)
)
"""
_NOW = "(SELECT clock_timestamp() + make_interval(secs => $1))"


@lru_cache(maxsize=512)
def render(sql: str, schema: str) -> str:
    """Return a statement for a schema.

    `{s}` is the schema's name; `{begin}` opens a statement that writes, with the time as `t.now`; `{now}` is the time
    in a statement that reads.
    """
    quoted = '"' + schema.replace('"', '""') + '"'
    return sql.replace("{begin}", _BEGIN).replace("{now}", _NOW).replace("{s}", quoted)


@dataclass(slots=True)
class Tx:
    """A connection for a few statements, and whom to wake when they are committed."""

    connection: Any
    settings: Settings
    clock: Clock
    is_repeat: bool = False  # the connection was lost before: it may have been done already
    wake: bool = False
    done: bool = False

    async def write(self, sql: str, *values: Any, accepting: bool = False) -> list[Any]:
        """Run a statement that begins with `{begin}`; `accepting` says that it takes in new work."""
        level = "on" if self.is_synced(accepting) else "off"
        rows = await self.connection.fetch(render(sql, self.settings.schema), self.clock.offset, level, *values)
        return list(rows)

    async def read(self, sql: str, *values: Any) -> list[Any]:
        """Run a statement that uses `{now}`."""
        rows = await self.connection.fetch(render(sql, self.settings.schema), self.clock.offset, *values)
        return list(rows)

    async def plain(self, sql: str, *values: Any) -> list[Any]:
        """Run a statement that needs no time."""
        return list(await self.connection.fetch(render(sql, self.settings.schema), *values))

    def is_synced(self, accepting: bool) -> bool:
        """Say whether a commit waits for the disk."""
        durability = self.settings.durability
        return durability == "strict" or (durability == "full" and accepting)
