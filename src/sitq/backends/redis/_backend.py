"""`RedisBackend`: the contract's methods, each an operation of the script."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, urlencode

from sitq._group_commit import ROW_BYTES, Lane
from sitq._signing import network_serializer
from sitq.backends._bytes import ByteBackend
from sitq.backends.base import Capability, check_move
from sitq.backends.redis import _operate
from sitq.backends.redis._doctor import DURABILITIES, diagnose
from sitq.backends.redis._rows import (
    STATUS_CODES,
    STATUSES,
    held_arguments,
    micros,
    outcome_arguments,
    reserved_from,
    result_arguments,
    task_arguments,
    task_from,
    worker_record,
)
from sitq.backends.redis._settings import Settings, normal_url
from sitq.backends.redis._store import Store
from sitq.backends.redis._wait import wait_for_work
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
    Status,
    Task,
    TaskFilter,
    WorkerInfo,
)
from sitq.exceptions import InvalidTransitionError, TaskNotFoundError, ValidationError
from sitq.serialization import Serializer

__all__ = ["RedisBackend"]

B = TypeVar("B", bound="RedisBackend")


class RedisBackend(ByteBackend):
    """Keeps tasks in Redis (6.2 or newer) or Valkey, for any number of machines. One node of it holds a namespace.

    Durability `"relaxed"` (the default): a task is in the server's memory before its id is returned; what of it
    survives a crash of the server is up to the server's own settings, which are read and logged at connect. `"full"`: a
    task is on the server's disk before its id is returned; what a worker settled may be lost by a crash, and then runs
    again. `"strict"`: that is on disk as well. Both need `appendonly yes`, and WAITAOF (Valkey, Redis 7.2) or
    `appendfsync always`.

    A failover to a replica loses what that had not heard of. With `replicas=1` or more, as many have a task before its
    id is returned; with `"strict"` what a worker settled as well. While there are fewer, that fails.

    A server that evicts keys (`maxmemory-policy`) is refused unless that policy is named in `allow_eviction`. `timeout`
    is how many seconds an answer may take; `retry_timeout` is for how many seconds a call is repeated when the server
    was away. `signing_keys` are those of `SignedSerializer`; without them `SITQ_SECRET_KEY` is taken.
    """

    capabilities = ~Capability.TRANSACTION
    poll_interval = 5.0

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        namespace: str = "default",
        durability: str = "relaxed",
        replicas: int = 0,
        allow_eviction: str | None = None,
        signing_keys: Mapping[str, bytes] | None = None,
        retry_timeout: float = 30.0,
        timeout: float = 10.0,
    ) -> None:
        if durability not in DURABILITIES:
            raise ValidationError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}")
        if replicas < 0:
            raise ValidationError(f"replicas is a number from 0, not {replicas!r}")
        if not namespace or any(character in "{}\n" for character in namespace):
            raise ValidationError(f"a namespace is a name without braces, not {namespace!r}")
        self._settings = Settings(
            url=normal_url(url),
            namespace=namespace,
            durability=durability,
            replicas=replicas,
            allowed_policy=allow_eviction,
            retry_timeout=retry_timeout,
            timeout=timeout,
        )
        self._signing_keys = signing_keys
        self._serializer: Serializer | None = None
        self._stores: dict[asyncio.AbstractEventLoop, Store] = {}

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make the backend for `redis://user:password@host:6379/0`, `rediss://` (TLS), `valkey://` or `valkeys://`.

        `redis+sentinel://user:password@host:26379,host:26379/service/0` asks sentinels for the primary of a service;
        `redis+cluster://user:password@host:6379,host:6379` finds the namespace's node of a cluster. By TLS it is
        `rediss+sentinel` and `rediss+cluster`.

        The query takes `namespace`, `durability`, `replicas`, `allow_eviction`, `retry_timeout` and `timeout`; the rest
        of it is redis-py's, such as `ssl_ca_certs`, and `sentinel_username`, `sentinel_password`.
        """
        url, _, text = url.partition("?")
        convert: dict[str, Callable[[str], Any]] = {
            "namespace": str,
            "durability": str,
            "replicas": int,
            "allow_eviction": str,
            "retry_timeout": float,
            "timeout": float,
        }
        try:
            query = dict(parse_qsl(text, strict_parsing=bool(text)))
            options = {name: convert[name](query.pop(name)) for name in convert if name in query}
        except ValueError as error:
            raise ValidationError(f"cannot read the options {', '.join(convert)} of the URL ({error})") from error
        return cls(f"{url}?{urlencode(query)}" if query else url, **options)

    def clone(self) -> Self:
        other = _with_settings(type(self), self._settings, self._signing_keys)
        other._serializer = self._serializer
        return other

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Any, ...]]:
        """Cross to another process as the settings."""
        return _with_settings, (type(self), self._settings, self._signing_keys)

    def default_serializer(self) -> Serializer:
        if self._serializer is None:
            self._serializer = network_serializer(self._signing_keys, "Redis")
        return self._serializer

    # --- open and close -----------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        await self._open()

    async def connect_existing(self) -> None:
        await self._open(create=False)

    async def close(self) -> None:
        store = self._stores.pop(asyncio.get_running_loop(), None)
        if store is not None and store.pid == os.getpid():
            await store.close()

    async def diagnose(self) -> Sequence[Finding]:
        store = await self._open()
        return diagnose(await store.read_server(), self._settings)

    async def _open(self, *, create: bool = True) -> Store:
        loop = asyncio.get_running_loop()
        store = self._stores.get(loop)
        if store is None or store.pid != os.getpid() or store.is_closed:
            self._forget_the_dead()
            store = self._stores[loop] = Store(self._settings)
        if not store.is_open:
            try:
                await store.open(create=create)
            except BaseException:
                if self._stores.get(loop) is store:
                    del self._stores[loop]
                await store.close()
                raise
        if store.is_closed:  # by whoever tried to open it before, and failed
            return await self._open(create=create)
        return store

    def _forget_the_dead(self) -> None:
        """Let go of stores whose event loop is closed, or that belong to the process this one was forked from."""
        for loop, store in list(self._stores.items()):
            if store.pid != os.getpid():
                _inherited.append(self._stores.pop(loop))
            elif loop.is_closed():
                self._stores.pop(loop).abandon()

    async def _call(self, name: str, *arguments: Any, size: int = 0) -> Any:
        return await (await self._open()).call(name, arguments, size=size)

    async def _read(self, name: str, *arguments: Any) -> Any:
        return await (await self._open()).read(name, arguments)

    # --- enqueue, reserve, settle -------------------------------------------------------------------------------------

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        arguments = [value for new in tasks for value in task_arguments(new.task)]
        size = sum(ROW_BYTES + len(new.task.payload or b"") for new in tasks)
        answers = await (await self._open()).call("accept", arguments, lane=Lane.ACCEPT, size=size)
        return [
            Accepted(id=new.task.id) if answer == 1 else Accepted(id=answer.decode(), created=False)
            for new, answer in zip(tasks, answers, strict=True)
        ]

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        store = await self._open()

        def give_back(rows: list[Any]) -> None:
            if rows:
                released = [Outcome.released(task.id, task.fence) for task in map(reserved_from, rows)]
                store.post("settle", [value for outcome in released for value in outcome_arguments(outcome)])

        queues = worker.queues or ()
        if worker.queues is not None and not queues:
            return []
        record, lease = worker_record(worker), micros(worker.lease)
        waiter, reservation = f"{store.handle}:{worker.id}", f"{store.handle[:6]}{next(store.reservations):x}"
        arguments = (worker.id, lease, max_tasks, record, waiter, reservation, *queues)
        rows = await store.call("reserve", arguments, unheard=give_back)
        return [reserved_from(row) for row in rows]

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        arguments = [value for outcome in outcomes for value in outcome_arguments(outcome)]
        size = sum(ROW_BYTES + len(o.result.payload or b"") for o in outcomes if o.result is not None)
        return [answer == 1 for answer in await self._call("settle", *arguments, size=size)]

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        store = await self._open()
        waiter, queues = f"{store.handle}:{worker.id}", worker.queues or ()

        async def look(left: float) -> float | None:
            due_in: int = await store.read("look", (waiter, micros(left), *queues))
            return None if due_in < 0 else due_in / 1_000_000

        try:
            await wait_for_work(store.listener, worker.id, look, timeout)
        except asyncio.CancelledError:
            store.post("leave", (waiter,))  # a wake-up that is on its way goes to somebody else
            raise

    async def wait_for_result(self, task_id: str, timeout: float) -> Result | None:
        if timeout <= 0:
            return await self._read_result(task_id)
        store = await self._open()
        result: Result | None = await store.results.wait(task_id, timeout)
        return result

    # --- one task, by hand --------------------------------------------------------------------------------------------

    async def get_task(self, task_id: str) -> Task | None:
        now, row = await self._read("task", task_id)
        return task_from(row, now) if row else None

    async def update_task_status(self, task_id: str, status: str) -> None:
        check_move(task_id, Status.QUEUED, status)  # is it one of the four words?
        answer = await self._call("move", task_id, STATUS_CODES[Status(status)])
        if answer is None:
            raise TaskNotFoundError(task_id)
        old, outcome = answer
        if outcome == b"refused":
            check_move(task_id, STATUSES[int(old)], status)
        if outcome == b"taken":
            raise InvalidTransitionError(f"task {task_id!r} cannot be queued: another task holds its unique key now")

    async def _write_result(self, task_id: str, result: Result) -> None:
        if not await self._call("write_result", task_id, *result_arguments(result)):
            raise TaskNotFoundError(task_id)

    async def _read_result(self, task_id: str) -> Result | None:
        found, _ = await (await self._open()).read_results([task_id], leave_word=False)
        return found.get(task_id)

    # --- leases -------------------------------------------------------------------------------------------------------

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        arguments = (worker.id, micros(worker.lease), worker_record(worker), *held_arguments(held))
        lost, cancelled = await self._call("extend", *arguments)
        return Extended(lost=frozenset(map(bytes.decode, lost)), cancelled=frozenset(map(bytes.decode, cancelled)))

    async def abandon_worker(self, worker_id: str) -> int:
        count: int = await self._call("abandon", worker_id)
        return count

    # --- operators ----------------------------------------------------------------------------------------------------

    async def cancel_tasks(self, task_ids: Sequence[str]) -> list[Cancelled]:
        return [Cancelled(answer.decode()) for answer in await self._call("cancel", *task_ids)]

    async def requeue_tasks(self, task_ids: Sequence[str]) -> list[bool]:
        return [answer == 1 for answer in await self._call("requeue", *task_ids)]

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        return await _operate.list_tasks(self._read, wanted or TaskFilter(), limit)

    async def count_tasks(self) -> list[QueueCounts]:
        return await _operate.count(self._read)

    async def list_workers(self) -> list[WorkerInfo]:
        return _operate.workers(await self._read("workers"))

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        if wanted is None:
            count: int = await self._call("purge", limit)
            return count
        return await _operate.purge(self._read, self._call, wanted, limit)

    async def pause_queue(self, queue: str, paused: bool) -> None:
        await self._call("pause", queue, int(paused))


_inherited: list[Store] = []  # of a parent process: closing them would talk on its connections


def _with_settings(kind: type[B], settings: Settings, signing_keys: Mapping[str, bytes] | None) -> B:
    backend = kind.__new__(kind)
    backend._settings, backend._signing_keys = settings, signing_keys
    backend._serializer, backend._stores = None, {}
    return backend
