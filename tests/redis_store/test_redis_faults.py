"""Kills and cut connections under load: nothing acknowledged is lost, and nothing stalls.

`SITQ_REDIS_KILLS` says how often the server is killed; `scripts/slow redis` does it a hundred times.
"""

import os
from collections.abc import Iterator

import pytest

from redis_store.keys import keys_out_of_place
from redis_store.ledger import Ledger
from servers.redis import RedisServer

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
