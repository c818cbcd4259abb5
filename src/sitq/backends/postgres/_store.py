"""A store as one event loop sees it: its connections, what is committed together, and its ears."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import asyncpg

from sitq._commit_task import CommitTask
from sitq._group_commit import Lane, Operation
from sitq.backends.postgres import _accept, _errors, _reserve, _schema, _settle
from sitq.backends.postgres._connect import Clock, Connections, Settings, Tx, transaction
from sitq.backends.postgres._listen import NOTIFY, Listener, channel
from sitq.backends.postgres._rows import NewRow
from sitq.core import Accepted, Outcome, WorkerInfo
from sitq.exceptions import BackendError, SitqError

__all__ = ["Store"]

T = TypeVar("T")

_PAUSES = (0.01, 1.0)  # seconds before a lost connection is made again, growing
_TELL_EVERY = 0.005  # seconds: NOTIFY locks the whole database for a moment


class Store:
    """The connections of one event loop to one schema, and the batches on their way."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.listener = Listener(settings)
        self._connections = Connections(settings)
        self._accepts = CommitTask(_Accepts(self), "sitq accepts")
        self._settles = CommitTask(_Settles(self), "sitq settles")
        self._reserving = _Reserves(self)
        self._reserves = CommitTask(self._reserving, "sitq reserves")
        self._told: set[str] = set()
        self._telling: asyncio.Task[None] | None = None
        self._closing = False

    async def open(self, existing: bool) -> None:
        """Connect, and see to it that the schema can be used."""
        try:
            async with self._connections.take() as connection:
                await _schema.check(connection, self.settings, existing)
        except SitqError:
            raise
        except Exception as error:
            raise self.explain(error) from error

    async def close(self) -> None:
        """Finish what was handed in, and let go of the connections."""
        for commits in (self._accepts, self._reserves, self._settles):  # what nobody heard of is given back by a settle
            await commits.close()
        self._closing = True
        await self._reserving.close()
        while self._telling is not None:
            await asyncio.wait([self._telling])
        await self.listener.close()
        await self._connections.close()

    def abandon(self) -> None:
        """Let go of everything without a word: the event loop is gone."""
        self._closing = True
        self._connections.abandon()

    # --- shared commits -----------------------------------------------------------------------------------------------

    async def accept(self, rows: Sequence[NewRow], size: int) -> list[Accepted]:
        """Store new tasks: all or none."""
        return await self._accepts.run(Operation(Lane.ACCEPT, rows, size))

    async def settle(self, outcomes: Sequence[Outcome], size: int) -> list[bool]:
        """Apply outcomes."""
        return await self._settles.run(Operation(Lane.WORK, outcomes, size))

    async def reserve(self, worker: WorkerInfo, limit: int) -> list[Any]:
        """Reserve tasks; those of which nobody hears are given back."""
        return await self._reserves.run(Operation(Lane.WORK, (worker, limit), unheard=self._give_back))

    def _give_back(self, rows: list[Any]) -> None:
        outcomes = [Outcome.released(row["id"], row["fence"]) for row in rows]
        if outcomes:
            self._settles.post(Operation(Lane.WORK, outcomes))

    # --- statements ---------------------------------------------------------------------------------------------------

    async def run(self, work: Callable[[Tx], Awaitable[T]], in_transaction: bool = False, repeat: bool = True) -> T:
        """Do `work` on a connection, in a transaction if asked. Raises `BackendError` for what PostgreSQL refuses."""
        try:
            return await self.attempt(work, in_transaction, repeat)
        except SitqError:
            raise
        except Exception as error:
            raise self.explain(error) from error

    async def attempt(self, work: Callable[[Tx], Awaitable[T]], in_transaction: bool = False, repeat: bool = True) -> T:
        """As `run`, with the driver's own errors. After a lost connection the same is done again: it is idempotent."""
        deadline = time.monotonic() + self.settings.retry_timeout
        pause, was_lost = _PAUSES[0], False
        while True:
            try:
                return await self._once(work, in_transaction, was_lost)
            except Exception as error:
                if _errors.lacks_epoch(error):
                    await self._once(_schema.enter_epoch, True, False)
                    continue
                if not repeat or not _errors.is_passing(error) or time.monotonic() + pause > deadline or self._closing:
                    raise
                was_lost = was_lost or _errors.is_lost(error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(pause * 2, _PAUSES[1])

    async def _once(self, work: Callable[[Tx], Awaitable[T]], in_transaction: bool, was_lost: bool) -> T:
        async with self._connections.take() as connection:
            tx = Tx(connection, self.settings, self.clock, was_lost)
            # A pooler may give each statement that stands alone, and even its parse and its execution, to another
            # session.
            if in_transaction or self.settings.is_pooled:
                async with transaction(connection, self.settings):
                    result = await work(tx)
            else:
                result = await work(tx)
        if tx.wake:
            self.tell("work")
        if tx.done:
            self.tell("done")
        return result

    def explain(self, error: Exception) -> BackendError:
        """Make the error for one caller."""
        return _errors.explain(error, self.settings.name)

    # --- waking others ------------------------------------------------------------------------------------------------

    def channel_to_tell(self, kind: str) -> str | None:
        """Return what a statement may NOTIFY, or None so soon after the last NOTIFY; `tell` afterwards either way."""
        return channel(kind, self.settings.schema) if self._telling is None else None

    def tell(self, kind: str, has_notified: bool = False) -> None:
        """Wake those who wait for "work" or "done", here at once and elsewhere by one NOTIFY for many commits."""
        self.listener.poke(kind)
        if not has_notified:
            self._told.add(channel(kind, self.settings.schema))
        if self._telling is None and not self._closing:
            self._telling = asyncio.create_task(self._tell(), name="sitq notify")

    async def _tell(self) -> None:
        try:
            while True:
                channels, self._told = sorted(self._told), set()
                if channels:
                    await self._notify(channels)
                await asyncio.sleep(_TELL_EVERY)
                if not self._told:
                    return
        finally:
            self._telling = None

    async def _notify(self, channels: list[str]) -> None:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # a hint: the poll is the truth
            await self._once(lambda tx: tx.plain(NOTIFY, channels), False, False)


class _Executor:
    """What the batches have in common."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def is_about_data(self, error: Exception) -> bool:
        return _errors.is_about_data(error)

    def explain(self, error: Exception) -> BackendError:
        return error if isinstance(error, BackendError) else self.store.explain(error)


class _Accepts(_Executor):
    """Stores new tasks by one statement, with durability "full" so that workers start while it waits for the disk."""

    async def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        rows = [row for operation in batch for row in operation.work]
        has_keys, settings = _accept.has_keys(rows), self.store.settings
        if not rows:
            accepted = []
        elif settings.durability == "full" and not has_keys and not settings.is_pooled:
            accepted = await self.store.attempt(partial(self._by_procedure, rows))
        else:
            accepted = await self.store.attempt(partial(self._by_insert, rows), in_transaction=has_keys)
        return _cut(accepted, batch)

    async def _by_procedure(self, rows: Sequence[NewRow], tx: Tx) -> list[Accepted]:
        channel_to_tell = self.store.channel_to_tell("work")
        accepted = await _accept.accept_early(tx, rows, channel_to_tell)
        self.store.tell("work", has_notified=channel_to_tell is not None)
        return _as_first_told(rows, accepted) if tx.is_repeat else accepted

    async def _by_insert(self, rows: Sequence[NewRow], tx: Tx) -> list[Accepted]:
        tx.wake = True
        accepted = await _accept.accept(partial(tx.write, accepting=True), rows)
        return _as_first_told(rows, accepted) if tx.is_repeat else accepted


class _Settles(_Executor):
    """Applies outcomes by one UPDATE of each kind."""

    async def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        outcomes = [outcome for operation in batch for outcome in operation.work]
        answers = await self.store.attempt(lambda tx: _settle.settle(tx, outcomes)) if outcomes else []
        return _cut(answers, batch)


class _Reserves(_Executor):
    """Reserves for one worker after the other."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._marks: dict[tuple[str, tuple[str, ...] | None], _reserve.Marks] = {}
        self._looking: dict[_reserve.Marks, asyncio.Task[None]] = {}

    async def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        return [await self._reserve_for(*operation.work) for operation in batch]

    async def close(self) -> None:
        """End the looks that are on their way."""
        for task in list(self._looking.values()):
            task.cancel()
            await asyncio.wait([task])

    async def _reserve_for(self, worker: WorkerInfo, limit: int) -> Any:
        marks = self._marks.setdefault((worker.id, worker.queues), _reserve.Marks())
        if marks.wants_look(time.monotonic()) and marks not in self._looking:
            self._looking[marks] = asyncio.create_task(self._look(worker, marks), name="sitq look in front")
        try:
            return await self.store.attempt(lambda tx: _reserve.reserve(tx, worker, limit, marks))
        except Exception as error:  # noqa: BLE001 (the others of the batch have theirs)
            return self.explain(error)

    async def _look(self, worker: WorkerInfo, marks: _reserve.Marks) -> None:
        """Look for what was put in front of the marks, beside the reserves: in one it took as long as all the rest."""
        try:
            await self.store.attempt(lambda tx: _reserve.look_in_front(tx, worker, marks))
        except Exception:  # noqa: BLE001 (a full look instead, whose error is somebody's answer)
            marks.run_dry()
        finally:
            del self._looking[marks]


def _cut(answers: list[T], batch: Sequence[Operation[Any]]) -> list[list[T]]:
    """Give each operation as many answers as it has items."""
    parts, start = [], 0
    for operation in batch:
        parts.append(answers[start : start + len(operation.work)])
        start += len(operation.work)
    return parts


def _as_first_told(rows: Sequence[NewRow], accepted: list[Accepted]) -> list[Accepted]:
    """Say that a task is new when only the answer to the first attempt was lost."""
    told: list[Accepted] = []
    seen: set[str] = set()
    for row, answer in zip(rows, accepted, strict=True):
        told.append(Accepted(id=answer.id) if answer.id == row[0] and row[0] not in seen else answer)
        seen.add(row[0])
    return told
