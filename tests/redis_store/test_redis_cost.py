"""What a task costs the server, in counts that do not depend on the machine."""

import asyncio
from collections.abc import Callable

import redis

from servers.redis import RedisServer
from sitq.backends.redis import RedisBackend
from sitq.core import NewTask, Outcome, Result, Task, WorkerInfo, utcnow

Make = Callable[..., RedisBackend]
WORKER = WorkerInfo(id="w", lease=3600.0)
PATIENCE = 60.0


def new(task_id: str) -> NewTask:
    """Return a small task."""
    return NewTask(task=Task(id=task_id, name="m:f", payload=b"call"))


def scripts_run(client: redis.Redis) -> int:
    """Return how many scripts the server has run."""
    counts = client.info("commandstats")
    return int(counts.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def noted(client: redis.Redis, worker: RedisBackend) -> None:
    """Return when the script knows that somebody waits."""
    while not client.hlen(f"{{sitq:{worker._settings.namespace}}}:waiting"):  # noqa: ASYNC110 (the server tells nobody)
        await asyncio.sleep(0.01)


async def test_a_worker_that_is_woken_reserves_at_once(server: RedisServer, make: Make) -> None:
    """It was named in the wake-up: to look first would be a round trip more."""
    async with make() as producer, make() as worker:
        await producer.enqueue_tasks([new("warm")])
        assert len(await worker.reserve(WORKER, 1)) == 1
        listener = (await worker._open()).listener
        listener.start()
        await listener.heard.wait()
        waiting = asyncio.create_task(worker.wait_for_work(WORKER, PATIENCE))
        with redis.Redis.from_url(server.url) as client:
            async with asyncio.timeout(PATIENCE):
                await noted(client, worker)
            before = scripts_run(client)
            await producer.enqueue_tasks([new("one")])
            await waiting
            assert scripts_run(client) - before == 1
        assert [task.id for task in await worker.reserve(WORKER, 1)] == ["one"]


async def test_a_small_task_stays_a_small_hash(server: RedisServer, make: Make) -> None:
    """A value over 64 bytes makes the server build another kind of hash: a quarter of the time of a settle."""
    async with make() as backend:
        await backend.enqueue_tasks([new("one")])
        (task,) = await backend.reserve(WORKER, 1)
        now = utcnow()
        result = Result(
            task_id="one", payload=b"value", attempts=1000, enqueued_at=task.created_at, started_at=now, finished_at=now
        )
        assert await backend.settle([Outcome.completed("one", task.fence, result)]) == [True]
        assert await backend.get_result("one") is not None
        with redis.Redis.from_url(server.url) as client:
            key = f"{{sitq:{backend._settings.namespace}}}:task:one"
            assert client.object("ENCODING", key) in (b"listpack", b"ziplist")
