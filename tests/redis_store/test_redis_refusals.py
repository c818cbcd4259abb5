"""A server that cannot save, or still reads its file: what is told, and what is waited for."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator

import pytest
import redis

from servers.redis import RedisServer
from sitq import BackendError, TaskQueue
from sitq.backends.redis import RedisBackend

Make = Callable[..., RedisBackend]


@pytest.fixture
def saving(kind: str) -> Iterator[RedisServer]:
    """Return a server that saves snapshots."""
    server = RedisServer(kind, "--save", "3600", "1")
    server.start()
    yield server
    server.remove()


async def test_a_server_that_cannot_save_is_told(saving: RedisServer, make: Make) -> None:
    async with TaskQueue(make(saving.url)) as queue:
        first = await queue.enqueue(len, "abc")
        with redis.Redis.from_url(saving.url) as client:
            snapshot = saving.folder / "dump.rdb"
            snapshot.mkdir()  # so it cannot be written
            await _save(client, "err")
            with pytest.raises(BackendError, match="cannot save to disk"):
                await queue.enqueue(len, "abc")
            assert await queue.get_task(first) is not None
            snapshot.rmdir()
            await _save(client, "ok")
        assert (await queue.enqueue(len, "abc")).created


async def test_a_server_that_loads_its_file_is_waited_for_or_named(saving: RedisServer, make: Make) -> None:
    with redis.Redis.from_url(saving.url) as client:
        client.mset({f"filler-{number}": os.urandom(4000) for number in range(5000)})
        client.save()
    saving.stop()
    saving.launch("--key-load-delay", "500")  # microseconds for each key
    while not _is_loading(saving):  # noqa: ASYNC110 (another process)
        await asyncio.sleep(0.01)
    with pytest.raises(BackendError, match="still loading its data"):
        await make(saving.url).connect()
    async with TaskQueue(make(saving.url, retry_timeout=60.0)) as queue:
        assert (await queue.enqueue(len, "abc")).created


async def _save(client: redis.Redis, status: str) -> None:
    """Save in the background, as it does by itself: only that stops the writes when it fails."""
    client.bgsave()
    async with asyncio.timeout(60):
        while not _has_saved(client, status):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.01)


def _has_saved(client: redis.Redis, status: str) -> bool:
    info = client.info("persistence")
    return not info["rdb_bgsave_in_progress"] and info["rdb_last_bgsave_status"] == status


def _is_loading(server: RedisServer) -> bool:
    """Say whether it has begun to; a driver would only say that it is not connected."""
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError:
        return False
    assert not answer.startswith(b"+PONG"), "it was too quick"
    return answer.startswith(b"-LOADING")
