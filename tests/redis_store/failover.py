"""Sentinels make another primary of a replica: nothing stalls, and what is lost is as promised. A run takes minutes.

`SITQ_REDIS_FAILOVERS` says how often; `scripts/slow sentinel` does it ten times, and says what was lost.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence

import pytest

from redis_store.ledger import Fault, Ledger
from servers.sentinel import Watched
from sitq import TaskQueue

FAILOVERS = int(os.environ.get("SITQ_REDIS_FAILOVERS", "1"))


@pytest.fixture(scope="module")
def watched(kind: str) -> Iterator[Watched]:
    with Watched(kind, "--appendonly", "yes", "--appendfsync", "always", down_after=1.0) as watched:
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
