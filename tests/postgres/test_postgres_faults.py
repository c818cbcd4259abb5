"""Crashes of the server and broken connections: what is lost, what is repeated, who hears of it."""

import asyncio
import dataclasses
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from postgres.ledger import Ledger
from servers.postgres import KEYS, PostgresServer
from servers.proxy import Proxy
from sitq import BackendError, TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend, _connect, _listen
from sitq.core import NewTask, Outcome, Result, Task, WorkerInfo
from waiting import until

WORKER = WorkerInfo(id="w", lease=3600.0)


def double(number: int) -> int:
    return number * 2


@pytest.fixture
async def fragile(own_server: PostgresServer, request: pytest.FixtureRequest) -> AsyncIterator[PostgresBackend]:
    """Return a backend on it, in a schema of its own."""
    schema = f"fragile_{abs(hash(request.node.name)) % 10**8}"
    async with PostgresBackend(own_server.url, schema=schema, signing_keys=KEYS) as backend:
        yield backend


def new(task_id: str) -> NewTask:
    return NewTask(task=Task(id=task_id, payload=b"x"))


async def crash(server: PostgresServer, how: signal.Signals = signal.SIGQUIT) -> None:
    await asyncio.to_thread(server.stop, how)
    server.start()


async def next_fence(backend: PostgresBackend, task_id: str) -> int:
    await backend.enqueue_tasks([new(task_id)])
    (task,) = await backend.reserve(WORKER, 1)
    assert task.fence is not None
    return task.fence


class TestEpoch:
    async def test_it_grows_with_a_crash(self, own_server: PostgresServer, fragile: PostgresBackend) -> None:
        """A crash may lose a reserve whose fence somebody holds: the next one is from another epoch."""
        before = [await next_fence(fragile, f"before-{n}") for n in range(2)]
        await crash(own_server)
        after = await next_fence(fragile, "after")
        assert before[0] >> 32 == before[1] >> 32 < after >> 32

    async def test_it_stays_at_an_orderly_restart(self, own_server: PostgresServer, fragile: PostgresBackend) -> None:
        """Nothing is lost then."""
        before = await next_fence(fragile, "before")
        await crash(own_server, signal.SIGINT)
        assert await next_fence(fragile, "after") >> 32 == before >> 32

    async def test_an_operator_needs_it_too(self, own_server: PostgresServer, fragile: PostgresBackend) -> None:
        await fragile.enqueue_tasks([new("x")])
        await crash(own_server)
        await fragile.update_task_status("x", "failed")
        stored = await fragile.get_task("x")
        assert stored is not None
        assert stored.fence is not None
        assert stored.fence >> 32 > 0

    async def test_many_enter_one(self, own_server: PostgresServer, fragile: PostgresBackend) -> None:
        """Workers that find the epoch gone at the same moment agree on the next one."""
        await crash(own_server)
        await fragile.enqueue_tasks([new(str(n)) for n in range(12)])
        clones = [fragile.clone() for _ in range(4)]
        reserved = await asyncio.gather(*(clone.reserve(WORKER, 3) for clone in clones))
        epochs = {(task.fence or 0) >> 32 for tasks in reserved for task in tasks}
        for clone in clones:
            await clone.close()
        assert len(epochs) == 1


@pytest.fixture
async def proxy(own_server: PostgresServer) -> AsyncIterator[Proxy]:
    async with Proxy(own_server.port) as proxy:
        yield proxy


@pytest.fixture
async def behind(own_server: PostgresServer, proxy: Proxy) -> AsyncIterator[PostgresBackend]:
    """Return a backend behind the proxy."""
    url = own_server.url.replace(str(own_server.port), str(proxy.port))
    async with PostgresBackend(url, schema=f"behind_{proxy.port}", pool_size=1, signing_keys=KEYS) as backend:
        yield backend


class TestLostReplies:
    """The server did it, and nobody was told: it is repeated, and answered as if it were the first time."""

    async def warm(self, behind: PostgresBackend) -> None:
        """Have the statements parsed: the driver waits for that, and would not get to what the test is about."""
        await behind.enqueue_tasks([new("warm")])
        (task,) = await behind.reserve(WORKER, 1)
        await behind.settle([Outcome.completed("warm", task.fence, Result(task_id="warm"))])
        await self.quiet(behind)

    async def quiet(self, behind: PostgresBackend) -> None:
        """Wait until nothing is on the way."""
        (store,) = behind._stores.values()
        await until(lambda: store._telling is None)

    async def done(self, behind: PostgresBackend, proxy: Proxy, call: Any, happened: Callable[..., Any]) -> Any:
        """Make a call whose reply is lost once it has `happened`; return the answer."""
        proxy.deafen()
        calling = asyncio.ensure_future(call)
        other = behind.clone()
        other._settings = _settings_of(behind, dsn=behind._settings.dsn.replace(str(proxy.port), str(proxy._target)))
        async with other:
            await until(lambda: happened(other), "what was asked for")
        assert not calling.done()
        proxy.mend()
        return await calling

    async def test_enqueue(self, behind: PostgresBackend, proxy: Proxy) -> None:
        async def stored(other: PostgresBackend) -> bool:
            return await other.get_task("a") is not None

        await self.warm(behind)
        answers = await self.done(behind, proxy, behind.enqueue_tasks([new("a"), new("b"), new("a")]), stored)
        assert [answer.created for answer in answers] == [True, True, False]

    async def test_settle(self, behind: PostgresBackend, proxy: Proxy) -> None:
        await self.warm(behind)
        await behind.enqueue_tasks([new("a")])
        (task,) = await behind.reserve(WORKER, 1)
        await self.quiet(behind)

        async def settled(other: PostgresBackend) -> bool:
            stored = await other.get_task("a")
            return stored is not None and stored.status == "completed"

        outcome = Outcome.completed("a", task.fence, Result(task_id="a"))
        assert await self.done(behind, proxy, behind.settle([outcome]), settled) == [True]


def _settings_of(backend: PostgresBackend, **changes: Any) -> _connect.Settings:
    return dataclasses.replace(backend._settings, **changes)


class TestListening:
    async def test_it_comes_back(self, behind: PostgresBackend, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
        """After the connection that listens was cut, another one hears."""
        caplog.set_level(logging.INFO, "sitq")
        waiting = asyncio.create_task(behind.wait_for_work(WORKER, 3600.0))
        (store,) = behind._stores.values()
        await until(lambda: store.listener.connects >= 1)
        proxy.cut()
        await until(lambda: store.listener.connects >= 2)
        async with behind.clone() as other:
            await other.enqueue_tasks([new("a")])
        async with asyncio.timeout(60):
            await waiting

    async def test_half_open_is_noticed(
        self, behind: PostgresBackend, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection on which nothing comes through any more is given up without a word from the network."""
        monkeypatch.setattr(_listen, "_PING", 0.1)
        waiting = asyncio.create_task(behind.wait_for_work(WORKER, 3600.0))
        (store,) = behind._stores.values()
        await until(lambda: store.listener.connects >= 1)
        proxy.hang()
        connections = proxy.connections
        await until(lambda: proxy.connections > connections, "another connection")
        proxy.mend()
        await until(lambda: store.listener.connects >= 2)
        waiting.cancel()


class TestTrouble:
    async def test_a_server_that_is_not_there(self) -> None:
        """Connecting fails at once, and says what to check."""
        with pytest.raises(BackendError, match="check that it runs"):
            await PostgresBackend("postgresql://127.0.0.1:1/none", signing_keys=KEYS).connect()

    async def test_a_database_that_is_not_there(self, own_server: PostgresServer) -> None:
        with pytest.raises(BackendError, match="no such database"):
            await PostgresBackend(own_server.url.replace("/postgres", "/none"), signing_keys=KEYS).connect()

    async def test_waiting_for_a_server_ends(self, own_server: PostgresServer, fragile: PostgresBackend) -> None:
        """After `retry_timeout` the caller hears of it; when the server is back, the same backend goes on."""
        (store,) = fragile._stores.values()
        store.settings = _settings_of(fragile, retry_timeout=0.3)
        await asyncio.to_thread(own_server.stop)
        try:
            with pytest.raises(BackendError, match="does not answer"):
                await fragile.enqueue_tasks([new("a")])
        finally:
            own_server.start()
        assert [answer.created for answer in await fragile.enqueue_tasks([new("a")])] == [True]

    async def test_a_worker_outlives_its_sessions(self, own_server: PostgresServer, fragile: PostgresBackend) -> None:
        """An administrator ends every session of the worker while it works."""
        async with TaskQueue(fragile) as queue, Worker(queue):
            for number in range(3):
                with psycopg.connect(own_server.url, autocommit=True) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sitq'"
                    )
                handle = await queue.enqueue(double, number)
                assert await handle.result(60) == number * 2


async def test_ledger(own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load, with crashes and every kind of broken connection, nothing acknowledged is lost and nothing stalls.

    `scripts/slow postgres` does more of it. Strict, so that nothing runs twice either.
    """
    monkeypatch.setattr(_connect, "_COMMAND_TIMEOUT", 1.0)
    monkeypatch.setattr(_connect, "_CONNECT_TIMEOUT", 1.0)
    ledger = Ledger(own_server, "strict", schema="ledger")
    rounds = int(os.environ.get("SITQ_SERVER_CRASHES", "1"))
    await ledger.run(["crash", "cut", "deaf", "hang"] * rounds)
    assert len(ledger.acknowledged) > 80
    print(ledger.account(rounds))  # noqa: T201 (scripts/slow shows it)
