"""With durability "full" a worker starts on a task while its producer waits for the disk."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest

from servers.postgres import KEYS, PostgresServer
from sitq import TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend
from sitq.core import NewTask, Task, TaskOptions, WorkerInfo
from waiting import until

DISK = "wal_writer_delay = 10s"  # nothing is on disk soon unless somebody waits for it
WORKER = WorkerInfo(id="w", lease=3600.0)


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync=True, settings=DISK)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def make(own_server: PostgresServer, request: pytest.FixtureRequest) -> Callable[..., PostgresBackend]:
    schema = f"early_{abs(hash(request.node.name)) % 10**8}"
    return lambda **options: PostgresBackend(own_server.url, schema=schema, signing_keys=KEYS, **options)


async def commit_waits(url: str) -> bool:
    """Whether a commit that is synced waits for a standby."""
    connect = psycopg.AsyncConnection.connect
    async with await connect(url, autocommit=True) as probe, await connect(url, autocommit=True) as watcher:
        commit = asyncio.create_task(probe.execute("SELECT pg_logical_emit_message(true, 'probe', '')"))

        async def waits() -> bool:
            query = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
            return await (await watcher.execute(query, [probe.info.backend_pid])).fetchone() == (True,)

        async def is_known() -> bool:
            return commit.done() or await waits()

        await until(is_known)
        if is_waiting := not commit.done():
            await watcher.execute("SELECT pg_cancel_backend(%s)", [probe.info.backend_pid])
        await commit
        return is_waiting


@pytest.fixture
async def slow_disk(own_server: PostgresServer) -> AsyncIterator[Callable[[bool], Awaitable[None]]]:
    """Return what makes every commit that is synced wait for a standby that is not there, and lets it go again.

    A reload says nothing when it has taken effect, and on a busy machine it took longer than a commit: a commit shows.
    """

    async def set_slow(is_slow: bool) -> None:
        async with await psycopg.AsyncConnection.connect(own_server.url, autocommit=True) as connection:
            names = "nobody" if is_slow else ""
            await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
            await connection.execute("SELECT pg_reload_conf()")

        async def is_set() -> bool:
            return await commit_waits(own_server.url) == is_slow

        await until(is_set)

    yield set_slow
    await set_slow(False)


def new(task_id: str, **options: Any) -> NewTask:
    return NewTask(task=Task(id=task_id, payload=b"x", options=TaskOptions(**options)))


def double(number: int) -> int:
    return number * 2


async def test_a_worker_starts_meanwhile(
    make: Callable[..., PostgresBackend], slow_disk: Callable[[bool], Awaitable[None]]
) -> None:
    ran = asyncio.Event()
    async with TaskQueue(make()) as producer, TaskQueue(make()) as queue:
        queue.on("succeeded", lambda _event: ran.set())
        async with Worker(queue):
            assert await (await producer.enqueue(double, 1)).result(60) == 2  # an epoch is entered: that is synced
            ran.clear()
            await slow_disk(True)
            enqueuing = asyncio.create_task(producer.enqueue(double, 21))
            await asyncio.wait_for(ran.wait(), 60)
            assert not enqueuing.done()
            await slow_disk(False)
            assert await (await enqueuing).result(60) == 42


@pytest.mark.parametrize(
    ("durability", "unique"), [("strict", None), ("full", "a key")], ids=["strict", "with a unique key"]
)
async def test_nobody_sees_it_before(
    make: Callable[..., PostgresBackend],
    slow_disk: Callable[[bool], Awaitable[None]],
    own_server: PostgresServer,
    durability: str,
    unique: str | None,
) -> None:
    async with make(durability=durability) as backend:
        assert await backend.reserve(WORKER, 1) == []
        await slow_disk(True)
        enqueuing = asyncio.create_task(backend.enqueue_tasks([new("a", unique=unique)]))
        with psycopg.connect(own_server.url, autocommit=True) as connection:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            await until(lambda: connection.execute(waiting).fetchone() == (1,))
        assert await backend.get_task("a") is None
        await slow_disk(False)
        assert [answer.created for answer in await enqueuing] == [True]
        assert await backend.get_task("a") is not None


@pytest.mark.parametrize(("durability", "is_kept"), [("full", True), ("relaxed", False)])
async def test_it_is_on_disk_when_that_returns(
    make: Callable[..., PostgresBackend], own_server: PostgresServer, durability: str, is_kept: bool
) -> None:
    """The server crashes the moment after; what did not wait is lost, which shows that the crash is one."""
    async with make(durability=durability) as backend:
        await backend.enqueue_tasks([new("a")])
        await asyncio.to_thread(own_server.stop, signal.SIGQUIT)
        own_server.start()
        assert (await backend.get_task("a") is not None) == is_kept
