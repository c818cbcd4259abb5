"""Connections: a line runs batches of operations, one script call each, and gets over what passes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import MovedError, NoScriptError, ReadOnlyError, RedisError, ResponseError

from sitq._group_commit import Lane, Operation
from sitq.backends.redis._errors import explain, is_passing
from sitq.backends.redis._scripts import SCRIPT, SHA
from sitq.backends.redis._settings import Settings
from sitq.exceptions import BackendError

__all__ = ["Call", "Line", "abandon", "connect", "end", "is_lost"]

_PAUSES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)  # seconds before a repeat, the last one again and again
_MOVES = 5  # from node to node of a cluster, whatever the time; more of them mean that it does not know itself
_SYNC_PATIENCE = 10.0  # seconds; with appendfsync everysec the disk has it after one

_TOLD = frozenset({"accept", "reserve"})  # whether they are repeated: what they find may be their own work

Call = tuple[str, Sequence[Any]]
"""An operation of the script: its name and its arguments."""


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end.

    More than once: before Python 3.12 `asyncio.wait_for`, by which redis-py sends, loses a cancellation that meets a
    result.
    """
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)


def is_lost(connection: AbstractConnection) -> bool:
    """Say whether a connection was closed under its user; to write to it is an `AttributeError` in Python 3.12.1."""
    return connection._writer is not None and connection._writer.transport.is_closing()


def abandon(connection: AbstractConnection) -> None:
    """Close a connection whose event loop is closed, and can do it no more."""
    writer, connection._writer, connection._reader = connection._writer, None, None
    outer: Any = getattr(writer, "transport", None)
    inner = getattr(getattr(outer, "_ssl_protocol", None), "_transport", None)  # what TLS goes by has the socket
    for transport in filter(None, (outer, inner)):
        with suppress(RuntimeError):
            transport.close()
        if getattr(transport, "_sock", None) is not None:
            transport._sock.close()
            transport._sock = None


async def connect(connection: AbstractConnection) -> None:
    """Open a connection."""
    await connection.connect()  # type: ignore[no-untyped-call]


class Line:
    """One connection, made when it is needed and again when it is lost. The executor of a `CommitTask`.

    `syncs` names the lanes whose batches wait: with `on_disk` until the server has written them to its disk, and until
    as many replicas have them as the settings ask for.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.syncs: frozenset[Lane] = frozenset()
        self.on_disk = False
        self.patience = _SYNC_PATIENCE
        self.connection: AbstractConnection | None = None
        self._run_id = b""

    async def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        """Run a batch on the server; repeat it while it fails for a reason that passes."""
        sync = any(operation.lane in self.syncs for operation in batch)
        deadline = time.monotonic() + self.settings.retry_timeout
        repeats = moves = 0
        while True:
            try:
                answers = await self._run([operation.work for operation in batch], repeats > 0, sync)
            except (RedisError, OSError) as error:
                here = getattr(self.connection, "host", "")
                await self.drop()
                moves += isinstance(error, MovedError)
                if isinstance(error, MovedError) and moves <= _MOVES:
                    self.settings.moved((error.host or here, error.port))
                elif not is_passing(error) or (repeats and time.monotonic() >= deadline):
                    raise  # but a connection that was lost, perhaps long ago, is always tried once more
                else:
                    self.settings.lost()
                pause = _PAUSES[min(repeats, len(_PAUSES) - 1)]
                repeats += 1
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 (others were cut off as well)
            except BaseException:  # cancelled: an answer may be on its way
                await self.drop()
                raise
            else:
                return [self.explain(item) if isinstance(item, Exception) else item for item in answers]

    async def command(self, *words: Any) -> Any:
        """Send one command of Redis, without repeats."""
        connection = await self._connected()
        await connection.send_command(*words)
        return await connection.read_response()

    def is_about_data(self, error: Exception) -> bool:
        """Say no: one operation's error is its own answer, and the others were done."""
        return False

    def explain(self, error: Exception) -> BackendError:
        """Make the error for one caller."""
        return error if isinstance(error, BackendError) else explain(error, self.settings.where)

    async def drop(self) -> None:
        """Close the connection; the next batch makes a new one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close the connection and wait until it is closed."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect()

    def abandon(self) -> None:
        """Close the connection after its event loop."""
        connection, self.connection = self.connection, None
        if connection is not None:
            abandon(connection)

    async def _connected(self) -> AbstractConnection:
        connection = self.connection
        if connection is None:
            connection = self.connection = await self.settings.connection()
            await connect(connection)
            with suppress(ResponseError):  # for CLIENT LIST; not everybody may
                await connection.send_command("CLIENT", "SETNAME", "sitq")
                await connection.read_response()
            await connection.send_command("INFO", "server")
            info: bytes = await connection.read_response()
            # This server, since its start: a connection does not outlive it, so what is said on it is said to this one.
            self._run_id = next(line[7:] for line in info.splitlines() if line.startswith(b"run_id:"))
            if self.settings.has_sentinels:  # they may be slow to hear of what became of it
                await connection.send_command("INFO", "replication")
                if b"role:master" not in await connection.read_response():
                    raise ReadOnlyError("the sentinels named it, and it is no primary")
        return connection

    async def _run(self, calls: Sequence[Call], again: bool, sync: bool) -> list[Any]:
        connection = await self._connected()
        words: list[Any] = ["EVALSHA", SHA, 1, self.settings.prefix, self._run_id, self.settings.offset]
        for name, arguments in calls:
            if name in _TOLD:
                words += (name, len(arguments) + 1, int(again))
            else:
                words += (name, len(arguments))
            words += arguments
        if sync and again:  # what is found done came by another connection: write here, after it, and wait for that
            words += ("touch", 0)
        packed = [pack_command(tuple(words))]  # the connection's own, in Python, took a tenth of the time of a drain
        waits = self._waits() if sync else []
        packed += map(pack_command, waits)
        if is_lost(connection):
            raise ConnectionLostError("the connection was closed")
        await connection.send_packed_command(packed)
        try:
            answers: list[Any] = await connection.read_response()
        except NoScriptError:
            for _ in waits:
                await connection.read_response()
            await connection.send_command("SCRIPT", "LOAD", SCRIPT)
            await connection.read_response()
            return await self._run(calls, again, sync)
        for wait in waits:
            reached = await connection.read_response(timeout=self.patience + self.settings.timeout)
            self._check(wait, reached)
        for answer in answers:
            if isinstance(answer, Exception) and is_passing(answer):
                raise answer  # a replica, for example: nothing was written
        return answers[: len(calls)]

    def _waits(self) -> list[tuple[Any, ...]]:
        patience = round(self.patience * 1000)
        waits: list[tuple[Any, ...]] = [("WAITAOF", 1, 0, patience)] if self.on_disk else []
        return [*waits, ("WAIT", self.settings.replicas, patience)] if self.settings.replicas else waits

    def _check(self, words: tuple[Any, ...], reached: Any) -> None:
        where, patience = self.settings.where, f"within {self.patience:g} seconds"
        if words[0] == "WAIT" and reached < self.settings.replicas:
            raise BackendError(
                f"{where}: done, but only {reached} of {self.settings.replicas} replicas have it {patience}"
            )
        if words[0] == "WAITAOF" and (not reached or reached[0] < 1):
            raise BackendError(f"{where}: done, but not on the server's disk {patience}: look at its disk and its log")
