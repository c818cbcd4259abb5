"""Sentinels name the primary, and make another one of a replica: nothing stalls, and what is lost is as promised.

`SITQ_REDIS_FAILOVERS` says how often; `scripts/slow sentinel` does it ten times, and says what was lost.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence

import pytest

from redis_store.ledger import Fault, Ledger
from servers.redis import KEYS
from servers.sentinel import SERVICE, Watched
from sitq import BackendError, TaskQueue, ValidationError, Worker
from sitq.backends.redis import RedisBackend

FAILOVERS = int(os.environ.get("SITQ_REDIS_FAILOVERS", "1"))


@pytest.fixture(scope="module")
def watched(kind: str) -> Iterator[Watched]:
    with Watched(kind, "--appendonly", "yes", "--appendfsync", "always") as watched:
        yield watched


class _Account(Ledger):
    """Counts what a failover lost."""

    def __init__(self, watched: Watched, namespace: str, durability: str) -> None:
        super().__init__(watched.servers[0], namespace, durability)
        self.watched = watched
        self.lost = 0

    async def fail(self, _: Ledger) -> None:
        """The primary dies, and the replica becomes one; the dead one comes back as its replica."""
        self.watched.bring_back(await asyncio.to_thread(self.watched.fail))
        await asyncio.to_thread(self.watched.settle)

    async def hand_over(self, _: Ledger) -> None:
        """The replica becomes the primary, and the primary its replica."""
        await asyncio.to_thread(self.watched.hand_over)

    async def _account(self, queue: TaskQueue) -> None:
        there = [handle for handle in self.acknowledged if await queue.get_task(handle) is not None]
        self.lost, self.acknowledged = len(self.acknowledged) - len(there), there
        await super()._account(queue)

    def say(self) -> None:
        """Tell what became of the tasks."""
        twice = sum(count > 1 for count in self.runs.values())
        sys.stderr.write(
            f"\n{self.namespace} on {self.server.kind}: {len(self.acknowledged) + self.lost} acknowledged, "
            f"{self.lost} lost, {self.refused} refused, {twice} run more than once\n"
        )


def _faults(ledger: _Account) -> Sequence[Fault]:
    """Crashes, and of every five one more that was planned: the sentinels take their time over those."""
    return [ledger.fail] * FAILOVERS + [ledger.hand_over] * (FAILOVERS // 5)


async def test_work_goes_on_after_a_failover(watched: Watched) -> None:
    ledger = _Account(watched, "asynchronous", "relaxed")
    await ledger.work(watched.url, _faults(ledger))
    ledger.say()  # what is lost is what the replica had not heard of: no promise is made


async def test_nothing_is_lost_that_a_replica_has_confirmed(watched: Watched) -> None:
    ledger = _Account(watched, "confirmed", "strict")
    await ledger.work(watched.url, _faults(ledger), replicas=1)
    ledger.say()
    assert ledger.lost == 0


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
