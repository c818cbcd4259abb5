"""Sentinels name the primary. What happens when they name another is in `failover.py`, for `scripts/slow sentinel`."""

import asyncio
from collections.abc import Iterator

import pytest

from servers.redis import KEYS
from servers.sentinel import SERVICE, Watched
from sitq import BackendError, TaskQueue, ValidationError, Worker
from sitq.backends.redis import RedisBackend


@pytest.fixture(scope="module")
def watched(kind: str) -> Iterator[Watched]:
    with Watched(kind, "--appendonly", "yes", "--appendfsync", "always") as watched:
        yield watched


async def test_too_few_replicas_are_told(watched: Watched) -> None:
    backend = RedisBackend(watched.url, signing_keys=KEYS, replicas=2)
    async with TaskQueue(backend) as queue:
        backend._stores[asyncio.get_running_loop()]._write_line.patience = 3.0
        with pytest.raises(BackendError, match=r"only [01] of 2 replicas"):
            await queue.enqueue(len, "abc")
        findings = {finding.name: finding for finding in await backend.diagnose()}
        assert (findings["replicas"].number, findings["replicas"].verdict) == (1, "bad")
        assert (await Worker(queue).run_until_empty()).completed == 1  # it was said to be done


async def test_mistakes_are_told(watched: Watched) -> None:
    def backend(url: str) -> RedisBackend:
        return RedisBackend(url, signing_keys=KEYS, retry_timeout=0.0)

    assert "secret" not in backend(watched.url)._settings.where
    with pytest.raises(BackendError, match="no sentinel names a primary"):
        await backend(watched.url.replace(f"/{SERVICE}", "/other")).connect()
    with pytest.raises(BackendError, match="no sentinel names a primary"):
        await backend("redis+sentinel://127.0.0.1:1,127.0.0.1:2/shop").connect()
    with pytest.raises(BackendError, match="password"):
        await backend(watched.url.replace("of-the-sentinels", "wrong")).connect()
    with pytest.raises(ValidationError, match="which service"):
        backend(watched.url.replace(f"/{SERVICE}", ""))
    with pytest.raises(ValidationError, match="port"):
        backend("redis+sentinel://host:port/shop")


def test_a_loop_that_ended_without_a_word_leaves_nothing_open(watched: Watched) -> None:
    backend = RedisBackend(watched.url, signing_keys=KEYS)
    asyncio.run(backend.connect())

    async def again() -> None:
        await backend.connect()
        await backend.close()

    asyncio.run(again())
