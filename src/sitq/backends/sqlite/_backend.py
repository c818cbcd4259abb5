"""`SQLiteBackend`: the contract's methods, each handed to the writer or the reader of the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from sitq._group_commit import ROW_BYTES
from sitq.backends._bytes import ByteBackend
from sitq.backends._results import ResultWait
from sitq.backends.base import Capability
from sitq.backends.sqlite import _doctor, _operate, _work
from sitq.backends.sqlite._caller import accept_in
from sitq.backends.sqlite._clock import Clock
from sitq.backends.sqlite._hints import Watch, kernel_wakes
from sitq.backends.sqlite._open import check_existing
from sitq.backends.sqlite._rows import NewRow, new_row, reserved_from, result_from, task_from
from sitq.backends.sqlite._store import DURABILITIES, Settings, Store, acquire
from sitq.backends.sqlite._wait import WorkWait
from sitq.backends.sqlite._work import Transaction
from sitq.core import (
    Accepted,
    Cancelled,
    Extended,
    Finding,
    Held,
    NewTask,
    Outcome,
    QueueCounts,
    ReservedTask,
    Result,
    Task,
    TaskFilter,
    WorkerInfo,
)
from sitq.exceptions import BackendError, ValidationError

__all__ = ["SQLiteBackend"]

T = TypeVar("T")
B = TypeVar("B", bound="SQLiteBackend")


class SQLiteBackend(ByteBackend):
    """Keeps tasks in a SQLite file, shared by all processes of one machine; `":memory:"` for one process alone.

    Durability `"full"` (the default): a task is on disk before its id is returned; what a worker settled may be lost
    by a power cut, and then runs again. `"strict"`: that is on disk as well. `"relaxed"`: a power cut may lose the
    last moments; a killed process loses nothing at any level.

    `file_mode` are the permissions of a new file. `busy_timeout` is how many seconds a write waits for other
    processes. `adopt=True` puts the queue's tables (`sitq_…`) into a database that has tables of its own.
    """

    capabilities = ~Capability(0)
    in_thread = True

    def __init__(
        self,
        path: str | Path,
        *,
        durability: str = "full",
        file_mode: int = 0o600,
        busy_timeout: float = 30.0,
        adopt: bool = False,
    ) -> None:
        if durability not in DURABILITIES:
            raise ValidationError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}")
        if not str(path):
            raise ValidationError('a SQLite store needs a path, or ":memory:"')
        in_memory = str(path) == ":memory:"
        self._settings = Settings(
            path=":memory:" if in_memory else os.path.realpath(path),
            durability=durability,
            file_mode=file_mode,
            busy_timeout=busy_timeout,
            adopt=adopt,
        )
        self._key: object = object() if in_memory else self._settings.path
        self._clock = Clock()
        self._store: Store | None = None
        self._work_waits: dict[asyncio.AbstractEventLoop, WorkWait] = {}
        self._result_waits: dict[asyncio.AbstractEventLoop, ResultWait[Watch]] = {}
        self._pid = os.getpid()
        if in_memory:
            self.capabilities = self.capabilities & ~Capability.TRANSACTION

    @property
    def path(self) -> str:
        """The file, with links resolved, or `":memory:"`."""
        return self._settings.path

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make the backend for `sqlite:///relative.db`, `sqlite:////absolute.db` or `sqlite:///:memory:`.

        The query takes `durability`, `file_mode` (octal), `busy_timeout` and `adopt`: `?durability=strict`.
        """
        parts = urlsplit(url)
        if parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2 or parts.fragment:
            raise ValidationError(f"write sqlite:///relative.db or sqlite:////absolute.db, not {url}")
        convert: dict[str, Callable[[str], Any]] = {
            "durability": str,
            "file_mode": lambda text: int(text, 8),
            "busy_timeout": float,
            "adopt": {"true": True, "1": True, "false": False, "0": False}.__getitem__,
        }
        try:
            options = {name: convert[name](value) for name, value in parse_qsl(parts.query, strict_parsing=True)}
        except (KeyError, ValueError) as error:
            known = ", ".join(convert)
            raise ValidationError(f"cannot read the options of {url} ({error}): there are {known}") from error
        return cls(unquote(parts.path[1:]), **options)

    def clone(self) -> Self:
        other = _with_settings(type(self), self._settings)
        other._key, other._clock = self._key, self._clock
        return other

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[type[Self], Settings]]:
        """Cross to another process as the path and the settings."""
        if self._settings.path == ":memory:":
            raise TypeError("a :memory: store stays in the process that opened it: use a file")
        return _with_settings, (type(self), self._settings)

    # --- open and close -----------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        store = self._store
        if store is not None and self._pid == os.getpid() and not store.has_ended:
            if not store.is_open:  # somebody else is at it
                await store.opened()
        else:
            ended = store if self._pid == os.getpid() else None
            if ended is not None:
                self._close_watches()
            self._leave_parent()
            store = self._store = acquire(self._settings, self._key)
            try:
                await store.opened()
            except Exception:  # not a cancellation: those who wait beside this one still want it
                self._store = None
                await store.release()
                raise
            finally:
                if ended is not None:
                    await ended.release()
        wakes = kernel_wakes() or not store.is_file
        self.poll_interval = 5.0 if wakes else 1.0

    async def connect_existing(self) -> None:
        if self._store is None:
            check_existing(self._settings.path)
        await self.connect()

    async def diagnose(self) -> Sequence[Finding]:
        store = await self._open()
        settings = replace(store.settings, durability=store.durability)
        return await store.read(lambda connection: _doctor.diagnose(connection, settings))

    def _leave_parent(self) -> None:
        """Forget what belongs to the process this one was forked from."""
        if self._pid != os.getpid() and self._store is not None and not self._store.is_file:
            raise BackendError("a :memory: store stays in the process that opened it: give this process a file")
        self._pid = os.getpid()
        self._store = None
        self._work_waits.clear()
        self._result_waits.clear()

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is None or self._pid != os.getpid():
            return
        self._close_watches()
        await store.release()

    def _close_watches(self) -> None:
        waits: list[WorkWait | ResultWait[Watch]] = [*self._work_waits.values(), *self._result_waits.values()]
        for wait in waits:
            wait.watch.close()
        self._work_waits.clear()
        self._result_waits.clear()

    async def _open(self) -> Store:
        store = self._store
        if store is None or self._pid != os.getpid() or not store.is_open:
            await self.connect()
            return await self._open()
        return store

    async def _write(
        self, work: Callable[[Transaction], T], unheard: Callable[[T], None] | None = None, size: int = 0
    ) -> T:
        return await (await self._open()).write(self._clock, work, unheard, size)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await (await self._open()).read(work)

    # --- enqueue, reserve, settle -------------------------------------------------------------------------------------

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        rows, size = self._new_rows(tasks)
        return await (await self._open()).accept(rows, self._clock, size)

    def _new_rows(self, tasks: Sequence[NewTask]) -> tuple[list[NewRow], int]:
        now = self._clock.now()
        rows = [new_row(new.task, now) for new in tasks]
        return rows, sum(ROW_BYTES + len(new.task.payload or b"") for new in tasks)

    async def enqueue_in(self, connection: Any, tasks: Sequence[NewTask]) -> list[Accepted]:
        store = await self._open()
        if not store.is_file:
            self._unsupported(Capability.TRANSACTION)
        rows, _ = self._new_rows(tasks)
        accepted = accept_in(connection, rows, self._clock.now(), replace(self._settings, durability=store.durability))
        store.work.give()  # before the commit, which is the caller's: who finds nothing looks again
        return accepted

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        store = await self._open()

        def give_back(rows: list[tuple[Any, ...]]) -> None:
            tasks = [reserved_from(row, worker) for row in rows]
            outcomes = [Outcome.released(task.id, task.fence) for task in tasks]
            if outcomes:
                store.write_unheard(self._clock, lambda tx: _work.settle(tx, outcomes))

        rows = await store.write(self._clock, lambda tx: _work.reserve(tx, worker, max_tasks), give_back)
        wait = self._work_waits.get(asyncio.get_running_loop())
        if wait is not None:
            wait.answered(found=bool(rows))
        return [reserved_from(row, worker) for row in rows]

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        size = sum(ROW_BYTES + len(o.result.payload or b"") for o in outcomes if o.result is not None)
        return await self._write(lambda tx: _work.settle(tx, outcomes), size=size)

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        store = await self._open()
        loop = asyncio.get_running_loop()
        wait = self._work_waits.get(loop)
        if wait is None:
            _forget_ended_loops(self._work_waits)
            wait = self._work_waits[loop] = WorkWait(store.work.watch())

        async def next_work(jitter: float) -> float | None:
            def look(connection: sqlite3.Connection) -> float | None:
                time.sleep(jitter)  # in the reader's thread: an event loop would make a whole millisecond of it
                return _work.next_work(connection, worker, self._clock)

            return await store.read(look)

        await wait.wait(next_work, timeout)

    async def wait_for_result(self, task_id: str, timeout: float) -> Result | None:
        if timeout <= 0:
            return await self._read_result(task_id)
        store = await self._open()
        loop = asyncio.get_running_loop()
        wait = self._result_waits.get(loop)
        if wait is None:
            _forget_ended_loops(self._result_waits)
            wait = self._result_waits[loop] = ResultWait(store.done.watch(), self._results)
        result: Result | None = await wait.wait(task_id, timeout)
        return result

    async def _results(self, task_ids: list[str]) -> dict[str, Result]:
        rows = await self._read(lambda c: _operate.read_results(c, task_ids, self._clock.now()))
        results = [result_from(row, self._clock) for row in rows]
        return {result.task_id: result for result in results if result is not None}

    # --- one task, by hand --------------------------------------------------------------------------------------------

    async def get_task(self, task_id: str) -> Task | None:
        row = await self._read(lambda connection: _operate.get_task(connection, task_id))
        return None if row is None else task_from(row, self._clock)

    async def update_task_status(self, task_id: str, status: str) -> None:
        await self._write(lambda tx: _operate.set_status(tx, task_id, status))

    async def _write_result(self, task_id: str, result: Result) -> None:
        await self._write(lambda tx: _operate.write_result(tx, task_id, result))

    async def _read_result(self, task_id: str) -> Result | None:
        return (await self._results([task_id])).get(task_id)

    # --- leases -------------------------------------------------------------------------------------------------------

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        heartbeat = await self._read(lambda connection: _work.look(connection, self._clock, worker, held))
        if not heartbeat.writes:
            return heartbeat.extended
        return await self._write(lambda tx: _work.extend(tx, worker, held))

    async def abandon_worker(self, worker_id: str) -> int:
        return await self._write(lambda tx: _work.abandon(tx, worker_id))

    # --- operators ----------------------------------------------------------------------------------------------------

    async def cancel_tasks(self, task_ids: Sequence[str]) -> list[Cancelled]:
        return await self._write(lambda tx: _operate.cancel(tx, task_ids))

    async def requeue_tasks(self, task_ids: Sequence[str]) -> list[bool]:
        return await self._write(lambda tx: _operate.requeue(tx, task_ids))

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        wanted = wanted or TaskFilter()
        return await self._read(lambda connection: _operate.list_tasks(connection, wanted, limit, self._clock))

    async def count_tasks(self) -> list[QueueCounts]:
        return await self._read(lambda connection: _operate.count(connection, self._clock))

    async def has_active_tasks(self, worker: WorkerInfo) -> bool:
        return await self._read(lambda connection: _work.has_active(connection, worker, self._clock))

    async def list_workers(self) -> list[WorkerInfo]:
        return await self._read(lambda connection: _operate.list_workers(connection, self._clock))

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        return await self._write(lambda tx: _operate.purge(tx, wanted, limit))

    async def pause_queue(self, queue: str, paused: bool) -> None:
        await self._write(lambda tx: _operate.pause(tx, queue, paused))


def _with_settings(kind: type[B], settings: Settings) -> B:
    backend = kind.__new__(kind)
    SQLiteBackend.__init__(backend, settings.path)
    backend._settings = settings
    return backend


def _forget_ended_loops(waits: dict[asyncio.AbstractEventLoop, Any]) -> None:
    """Close the watches of event loops that have ended, as after each `asyncio.run` of a script with a global queue."""
    for loop in [loop for loop in waits if loop.is_closed()]:
        waits.pop(loop).watch.close()
