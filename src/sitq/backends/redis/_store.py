"""One handle's connections on one event loop: lines for what is written, reserved and read, and one that listens."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError

from sitq._commit_task import CommitTask
from sitq._group_commit import Lane, Operation
from sitq.backends.redis._doctor import Server, check, read_server
from sitq.backends.redis._link import Line
from sitq.backends.redis._rows import result_from
from sitq.backends.redis._settings import Settings
from sitq.backends.redis._wait import Listener, ResultWait
from sitq.backends.redis._watch import Watch
from sitq.core import Result
from sitq.exceptions import BackendError, SchemaError

__all__ = ["Store"]

_VERSION = 1
"""Of the keys. Two versions of sitq that lay them out differently must not share a namespace."""


class Store:
    """What a handle holds open. Connections are made when they are first needed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.handle = uuid4().hex[:12]
        self.is_open = self.is_closed = False
        self.reservations = itertools.count()
        self.pid = os.getpid()
        self._opening = asyncio.Lock()
        self._lines = Line(settings), Line(settings), Line(settings)
        self._write_line, self._reserve_line, self._read_line = self._lines
        self._writer = CommitTask(self._write_line, "sitq redis writer")
        # Apart from the writer, or the next tasks would wait for the answer about those before: a third of a drain.
        self._reserver = CommitTask(self._reserve_line, "sitq redis reserver")
        self._reader = CommitTask(self._read_line, "sitq redis reader")
        self.listener = Listener(settings, f"{settings.prefix}:wake:{self.handle}")
        self.results = ResultWait(self.listener, self.read_results)
        users = (*self._lines, self.listener)
        self.watch = Watch(settings, lambda: [user.connection for user in users])

    async def open(self, *, create: bool) -> None:
        """Connect, and check that server and namespace are fit for use; one that was closed stays so."""
        async with self._opening:
            if self.is_open or self.is_closed:
                return
            try:
                await self._enter(create=create)
            except BaseException:
                self.is_closed = True  # before the next one who waits to open it has a try
                raise
            self.is_open = True

    async def _enter(self, *, create: bool) -> None:
        version = await self.call("open", (_VERSION,) if create else ())
        if version > _VERSION:
            raise SchemaError(
                f"the namespace {self.settings.namespace} was made by a newer sitq (version {version}, this one "
                f"knows {_VERSION}): upgrade sitq here"
            )
        if version == 0:
            raise BackendError(f"{self.settings.where} has no namespace {self.settings.namespace}: check the name")
        on_disk = check(await self.read_server(), self.settings)
        if on_disk or self.settings.replicas:
            strict = self.settings.durability == "strict"
            for line in (self._write_line, self._reserve_line):
                line.on_disk = on_disk
                line.syncs = frozenset(Lane) if strict else frozenset({Lane.ACCEPT})
        if self.settings.has_sentinels:
            self.watch.start()

    async def read_server(self) -> Server:
        """Ask the server how it is set up, on a connection for that alone."""
        line = Line(self.settings)
        try:
            return await read_server(line)
        except (RedisError, OSError) as error:
            raise line.explain(error) from error
        finally:
            await line.close()

    async def close(self) -> None:
        """Finish what was asked, and close all connections."""
        async with self._opening:  # or what is being opened just now would stay open
            self.is_open, self.is_closed = False, True
        await self.watch.close()
        await self.results.close()
        await self.listener.close()
        for task, line in (
            (self._reserver, self._reserve_line),  # what nobody heard of is given back by the writer
            (self._writer, self._write_line),
            (self._reader, self._read_line),
        ):
            await task.close()
            await line.close()

    def abandon(self) -> None:
        """Let go of everything without a word: the event loop is gone."""
        for part in (self.watch, self.listener, *self._lines):
            part.abandon()

    # --- operations ---------------------------------------------------------------------------------------------------

    async def call(
        self,
        name: str,
        arguments: Sequence[Any],
        *,
        lane: Lane = Lane.WORK,
        size: int = 0,
        unheard: Callable[[Any], None] | None = None,
    ) -> Any:
        """Run an operation that writes, in a batch with whatever else waits."""
        return await self._task_for(name).run(Operation(lane, (name, arguments), size, unheard))

    def post(self, name: str, arguments: Sequence[Any]) -> None:
        """Run an operation whose answer is of no interest."""
        self._task_for(name).post(Operation(Lane.WORK, (name, arguments)))

    def _task_for(self, name: str) -> CommitTask:
        """Return what does an operation. `leave` goes before the next `reserve`, and so the same way."""
        return self._reserver if name in ("reserve", "leave") else self._writer

    async def read(self, name: str, arguments: Sequence[Any]) -> Any:
        """Run an operation that looks; it does not wait for those that write."""
        return await self._reader.run(Operation(Lane.WORK, (name, arguments)))

    async def read_results(
        self, task_ids: Sequence[str], *, leave_word: bool = True
    ) -> tuple[dict[str, Result], float | None]:
        """Return the results that are there, and in how many seconds one of the other tasks expires.

        With `leave_word` the script tells this handle when one of the others ends.
        """
        answer = await self.read("results", (self.handle if leave_word else "", *task_ids))
        now = int(answer[0])
        found: dict[str, Result] = {}
        soonest: float | None = None
        for at in range(1, len(answer), 4):
            raw_id, header, payload, row = answer[at : at + 4]
            task_id = raw_id.decode()
            result = result_from(task_id, header, payload, row if isinstance(row, list) else None, now)
            if result is not None:
                found[task_id] = result
            elif row:
                soonest = min((int(row) - now) / 1_000_000, soonest or 1e9)
        return found, soonest
