"""`PostgresBackend`: the contract's methods, each handed to the store of the running event loop."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sitq._group_commit import ROW_BYTES
from sitq._signing import network_serializer
from sitq.backends._bytes import ByteBackend
from sitq.backends._results import ResultWait
from sitq.backends.base import Capability
from sitq.backends.postgres import _doctor, _inspect, _operate, _reserve, _schema, _settle
from sitq.backends.postgres._caller import accept_in
from sitq.backends.postgres._connect import DURABILITIES, Clock, Settings, Tx, connect
from sitq.backends.postgres._errors import explain
from sitq.backends.postgres._listen import Ear
from sitq.backends.postgres._rows import NewRow, new_row, reserved_from, result_from, task_from
from sitq.backends.postgres._store import Store
from sitq.backends.postgres._wait import WorkWait
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
from sitq.exceptions import SitqError, ValidationError
from sitq.serialization import Serializer

__all__ = ["PostgresBackend"]

T = TypeVar("T")
B = TypeVar("B", bound="PostgresBackend")

_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
_FLAG = {"true": True, "1": True, "false": False, "0": False}.__getitem__
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "schema": str,
    "durability": str,
    "pool_size": int,
    "listen": _FLAG,
    "listen_dsn": str,
    "migrate": _FLAG,
    "retry_timeout": float,
    "statement_cache_size": int,
}


class PostgresBackend(ByteBackend):
    """Keeps tasks in a PostgreSQL database (14 or newer), shared by any number of machines.

    Durability `"full"` (the default): a task is on the server's disk before its id is returned; what a worker reserved
    or settled may be lost by a crash of the server, and then runs again. `"strict"`: that is on disk as well.
    `"relaxed"`: a crash may lose the last moments. A failover to a standby loses what that has not received.

    `schema` holds the tables; it is made at the first connect unless `migrate=False` (then `sitq migrate` does it).
    `pool_size` bounds the connections of a process, beside one that listens and one of the heartbeat. `listen=False`
    polls every second instead; `listen_dsn` is another way to the same database for listening, past a pooler.
    `statement_cache_size=0` asks nothing of a session, for poolers such as PgBouncer in transaction mode.
    `retry_timeout` is how many seconds a lost server is waited for. Calls and values are signed with `signing_keys`, or
    those of `SITQ_SECRET_KEY` (see `SignedSerializer`), unless the queue is given a serializer.
    """

    capabilities = ~Capability(0)
    prefetch = 1000  # no lock for all, as on a file; with 250 one worker drains a sixth less

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "sitq",
        durability: str = "full",
        pool_size: int = 4,
        listen: bool = True,
        listen_dsn: str | None = None,
        migrate: bool = True,
        retry_timeout: float = 30.0,
        statement_cache_size: int = 100,
        signing_keys: Mapping[str, bytes] | None = None,
    ) -> None:
        if urlsplit(dsn).scheme not in ("postgresql", "postgres"):
            raise ValidationError("write postgresql://user:password@host:5432/database")
        if durability not in DURABILITIES:
            raise ValidationError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}")
        if not _SCHEMA.fullmatch(schema):
            raise ValidationError(f"a schema's name has up to 48 letters, digits and underscores, not {schema!r}")
        if pool_size < 1:
            raise ValidationError(f"pool_size is at least 1, not {pool_size!r}")
        self._settings = Settings(
            dsn=dsn,
            listen_dsn=listen_dsn,
            schema=schema,
            durability=durability,
            pool_size=pool_size,
            listen=listen,
            migrate=migrate,
            retry_timeout=retry_timeout,
            statement_cache_size=statement_cache_size,
        )
        self._signing_keys = signing_keys
        self._clock = Clock()
        self._stores: dict[asyncio.AbstractEventLoop, Store] = {}
        self._waits: dict[Store, tuple[WorkWait, ResultWait[Ear]]] = {}
        self.poll_interval = 5.0 if listen else 1.0

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make the backend for `postgresql://user:password@host:5432/database?schema=sitq`.

        The query takes the options of the class; what it does not know (`sslmode`, …) is left to the driver.
        """
        parts = urlsplit(url)
        options: dict[str, Any] = {}
        rest = []
        for name, value in parse_qsl(parts.query):
            if name not in _OPTIONS:
                rest.append((name, value))
                continue
            try:
                options[name] = _OPTIONS[name](value)
            except (KeyError, ValueError):
                raise ValidationError(f"cannot read the option {name}={value} of the URL") from None
        return cls(urlunsplit(parts._replace(query=urlencode(rest))), **options)

    def clone(self) -> Self:
        other = _with_settings(type(self), self._settings, self._signing_keys)
        other._clock = self._clock
        return other

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        """Cross to another process as the settings."""
        return _with_settings, (type(self), self._settings, self._signing_keys)

    def default_serializer(self) -> Serializer:
        return network_serializer(self._signing_keys, "PostgreSQL")

    # --- open and close -----------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        await self._connect()

    async def connect_existing(self) -> None:
        await self._connect(existing=True)

    async def _connect(self, existing: bool = False) -> Store:
        loop = asyncio.get_running_loop()
        store = self._stores.get(loop)
        if store is not None and store.pid == os.getpid():
            return store
        self._forget_the_dead()
        store = Store(self._settings, self._clock)
        try:
            await store.open(existing)
        except BaseException:
            await store.close()
            raise
        return self._stores.setdefault(loop, store)

    def _forget_the_dead(self) -> None:
        """Let go of stores whose event loop is closed, or that belong to the process this one was forked from."""
        for loop, store in list(self._stores.items()):
            if store.pid != os.getpid():
                _inherited.append(self._stores.pop(loop))
            elif loop.is_closed():
                self._stores.pop(loop).abandon()
            else:
                continue
            self._waits.pop(store, None)

    async def close(self) -> None:
        store = self._stores.pop(asyncio.get_running_loop(), None)
        if store is None or store.pid != os.getpid():
            return
        self._waits.pop(store, None)
        await store.close()

    async def _open(self) -> Store:
        store = self._stores.get(asyncio.get_running_loop())
        return store if store is not None and store.pid == os.getpid() else await self._connect()

    async def _run(self, work: Callable[[Tx], Awaitable[T]], in_transaction: bool = False, repeat: bool = True) -> T:
        return await (await self._open()).run(work, in_transaction, repeat)

    async def diagnose(self) -> Sequence[Finding]:
        return await self._run(_doctor.diagnose)

    def migrations(self, since: int = 0) -> list[_schema.Migration]:
        """Return the steps that lead from version `since` of the schema to the current one, with their SQL."""
        return _schema.scripts(self._settings.schema, since)

    async def migrate(self) -> list[_schema.Migration]:
        """Bring the schema up to date, as a role that may; return the steps that were taken."""
        try:
            connection = await connect(self._settings)
            try:
                return await _schema.migrate(connection, self._settings)
            finally:
                await connection.close()
        except SitqError:
            raise
        except Exception as error:
            raise explain(error, self._settings.name) from error

    # --- enqueue, reserve, settle -------------------------------------------------------------------------------------

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        return await (await self._open()).accept(_new_rows(tasks), _size(tasks))

    async def enqueue_in(self, connection: Any, tasks: Sequence[NewTask]) -> list[Accepted]:
        accepted = await accept_in(connection, _new_rows(tasks), self._clock, self._settings) if tasks else []
        # Before the commit, which is the caller's: who finds nothing looks again. `SyncTaskQueue` comes without a loop.
        if asyncio._get_running_loop() is not None:
            (await self._open()).tell("work")
        else:
            for store in list(self._stores.values())[:1]:
                with suppress(RuntimeError):  # it is closed by now
                    store.loop.call_soon_threadsafe(store.tell, "work")
        return accepted

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        rows = await (await self._open()).reserve(worker, max_tasks)
        return [reserved_from(row, worker) for row in rows]

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        size = sum(ROW_BYTES + len(o.result.payload or b"") for o in outcomes if o.result is not None)
        return await (await self._open()).settle(outcomes, size)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _waits_of(self, store: Store) -> tuple[WorkWait, ResultWait[Ear]]:
        waits = self._waits.get(store)
        if waits is None:
            work, done = store.listener.ear("work"), store.listener.ear("done")
            waits = self._waits[store] = (WorkWait(work), ResultWait(done, self._results))
        return waits

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        store = await self._open()
        wait, _ = self._waits_of(store)
        await wait.wait(lambda: store.run(lambda tx: _reserve.next_work(tx, worker)), timeout)

    async def wait_for_result(self, task_id: str, timeout: float) -> Result | None:
        if timeout <= 0:
            return await self._read_result(task_id)
        _, wait = self._waits_of(await self._open())
        return await wait.wait(task_id, timeout)

    async def _results(self, task_ids: list[str]) -> dict[str, Result]:
        rows = await self._run(lambda tx: _operate.read_results(tx, task_ids))
        return {result.task_id: result for result in map(result_from, rows) if result is not None}

    # --- one task, by hand --------------------------------------------------------------------------------------------

    async def get_task(self, task_id: str) -> Task | None:
        row = await self._run(lambda tx: _operate.get_task(tx, task_id))
        return None if row is None else task_from(row)

    async def update_task_status(self, task_id: str, status: str) -> None:
        await self._run(lambda tx: _operate.set_status(tx, task_id, status), in_transaction=True)

    async def _write_result(self, task_id: str, result: Result) -> None:
        await self._run(lambda tx: _operate.write_result(tx, task_id, result))

    async def _read_result(self, task_id: str) -> Result | None:
        return (await self._results([task_id])).get(task_id)

    # --- leases -------------------------------------------------------------------------------------------------------

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        async def work(tx: Tx) -> Extended:
            heartbeat = await _settle.look(tx, worker, held)
            return await _settle.beat(tx, worker, heartbeat) if heartbeat.writes else heartbeat.extended

        return await self._run(work)

    async def abandon_worker(self, worker_id: str) -> int:
        return await self._run(lambda tx: _settle.abandon(tx, worker_id))

    # --- operators ----------------------------------------------------------------------------------------------------

    async def cancel_tasks(self, task_ids: Sequence[str]) -> list[Cancelled]:
        return await self._run(lambda tx: _operate.cancel(tx, task_ids), in_transaction=True)

    async def requeue_tasks(self, task_ids: Sequence[str]) -> list[bool]:
        return await self._run(lambda tx: _operate.requeue(tx, task_ids), in_transaction=True, repeat=False)

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        return await self._run(lambda tx: _inspect.list_tasks(tx, wanted or TaskFilter(), limit))

    async def count_tasks(self) -> list[QueueCounts]:
        return await self._run(_inspect.count)

    async def has_active_tasks(self, worker: WorkerInfo) -> bool:
        return await self._run(lambda tx: _reserve.has_active(tx, worker))

    async def list_workers(self) -> list[WorkerInfo]:
        return await self._run(_inspect.list_workers)

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        return await self._run(lambda tx: _inspect.purge(tx, wanted, limit))

    async def pause_queue(self, queue: str, paused: bool) -> None:
        await self._run(lambda tx: _inspect.pause(tx, queue, paused))


_inherited: list[Store] = []  # of a parent process: closing them would talk on its connections


def _new_rows(tasks: Sequence[NewTask]) -> list[NewRow]:
    return [new_row(new.task) for new in tasks]


def _size(tasks: Sequence[NewTask]) -> int:
    return sum(ROW_BYTES + len(new.task.payload or b"") for new in tasks)


def _with_settings(kind: type[B], settings: Settings, signing_keys: Mapping[str, bytes] | None) -> B:
    backend = kind.__new__(kind)
    PostgresBackend.__init__(backend, settings.dsn, listen=settings.listen, signing_keys=signing_keys)
    backend._settings = settings
    return backend
