"""Kills and cut connections under load: nothing acknowledged is lost, and nothing stalls.

`SITQ_REDIS_KILLS` says how often the server is killed; `scripts/slow redis` does it a hundred times.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from redis_store.keys import keys_out_of_place
from redis_store.ledger import Ledger
from servers.proxy import Proxy
from servers.redis import RedisServer
from sitq import TaskQueue
from sitq.backends.redis import RedisBackend
from sitq.core import Outcome, TaskFilter, WorkerInfo

KILLS = int(os.environ.get("SITQ_REDIS_KILLS", "2"))
SYNCED = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module")
def synced(kind: str) -> Iterator[RedisServer]:
    """Return a server that acknowledges nothing before it is on disk."""
    server = RedisServer(kind, *SYNCED)
    server.start()
    yield server
    server.remove()


async def test_kills_and_cuts_lose_nothing(synced: RedisServer) -> None:
    ledger = Ledger(synced)
    await ledger.run(["kill", "cut", "deaf"] * KILLS)
    assert len(ledger.acknowledged) > 100
    assert not keys_out_of_place(synced.url, ledger.namespace)


async def test_hung_connections_are_given_up(synced: RedisServer) -> None:
    await Ledger(synced, namespace="hung").run(["hang"])


async def test_a_reservation_nobody_heard_of_is_handed_out_again(
    server: RedisServer, make: Callable[..., RedisBackend]
) -> None:
    worker = WorkerInfo(id="w", lease=3600.0)
    async with Proxy(server.port) as proxy, make() as direct, TaskQueue(direct) as queue:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with make(url, retry_timeout=30.0) as backend:
            await queue.enqueue_many(len, [("abc",)] * 3)
            (held,) = await backend.reserve(worker, 1)
            proxy.deafen()
            reserving = asyncio.create_task(backend.reserve(worker, 1))
            async with asyncio.timeout(60):
                while len(await direct.list_tasks(TaskFilter(phase="running"))) < 2:  # noqa: ASYNC110 (elsewhere)
                    await asyncio.sleep(0.01)
            (running,) = (t for t in await direct.list_tasks(TaskFilter(phase="running")) if t.id != held.id)
            proxy.mend()
            (task,) = await reserving
            assert task.id == running.id
            assert task.attempt == 1
            (other,) = await backend.reserve(worker, 2)  # and only that was
            outcomes = [Outcome.released(t.id, t.fence) for t in (held, task, other)]
            assert await backend.settle(outcomes) == [True] * 3


async def test_closing_ends_although_the_driver_loses_a_cancellation(make: Callable[..., RedisBackend]) -> None:
    backend = make()
    async with backend:
        listener = backend._stores[asyncio.get_running_loop()].listener
        lost = asyncio.Event()

        async def deaf() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            lost.set()
            await asyncio.Event().wait()

        listener._listen = deaf  # type: ignore[method-assign]
        listener.start()
        await asyncio.sleep(0)
    assert lost.is_set()


async def test_the_ledger_would_notice(kind: str) -> None:
    server = RedisServer(kind)  # keeps nothing on disk
    server.start()
    try:
        with pytest.raises((AssertionError, TimeoutError)):
            await _Impatient(server, durability="relaxed").run(["kill"])
    finally:
        server.remove()


class _Impatient(Ledger):
    async def _account(self, queue: object) -> None:
        found = [await queue.get_task(handle) for handle in self.acknowledged]  # type: ignore[attr-defined]
        assert None not in found
