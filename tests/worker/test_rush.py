"""When a worker asks a store that works in a thread of its process: not while short tasks follow each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from sitq import MemoryBackend, SQLiteBackend, TaskQueue, Worker
from sitq.core import Outcome, ReservedTask, WorkerInfo

stopping: list[asyncio.Task[None]] = []


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping.clear()
    monkeypatch.setattr("sitq._session.GIVE_BACK_AFTER", 3600.0)  # what is given back is settled as well


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a rush last as long as it may take here."""
    monkeypatch.setattr("sitq._settle._LONGEST_RUSH", 3600.0)


async def nothing(_number: int) -> None: ...


async def keep_the_loop_busy(_number: int) -> None:
    time.sleep(0.005)  # noqa: ASYNC251 (that is what it is for)


async def stop_all(_number: int) -> None:
    if not stopping:
        stopping.append(asyncio.create_task(workers[-1].stop()))


workers: list[Worker] = []


class Counting(MemoryBackend):
    """Notes how many outcomes each settle brings, and whether the worker was asked to stop before a reserve."""

    def __init__(self, in_thread: bool = True) -> None:
        super().__init__()
        self.in_thread = in_thread
        self.settled: list[int] = []
        self.reserved_late = 0

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        self.settled.append(len(outcomes))
        return await super().settle(outcomes)

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        self.reserved_late += bool(stopping)
        return await super().reserve(worker, max_tasks)


def test_the_sqlite_store_works_in_a_thread() -> None:
    assert SQLiteBackend.in_thread


@pytest.mark.usefixtures("slow_machine")
@pytest.mark.parametrize(("in_thread", "least", "most"), [(True, 2, 20), (False, 50, 500)])
async def test_a_store_in_a_thread_hears_of_a_whole_rush_at_once(in_thread: bool, least: int, most: int) -> None:
    store = Counting(in_thread)
    async with TaskQueue(store) as queue:
        await queue.enqueue_many(nothing, [(number,) for number in range(1000)])
        counts = await Worker(queue, max_concurrency=10).run_until_empty()
    assert counts.completed == sum(store.settled) == 1000
    assert least <= len(store.settled) <= most, store.settled


async def test_a_rush_that_goes_on_does_not_hold_back_its_outcomes() -> None:
    store = Counting()
    async with TaskQueue(store) as queue:
        await queue.enqueue_many(keep_the_loop_busy, [(number,) for number in range(40)])
        await Worker(queue, max_concurrency=1).run_until_empty()
    assert sum(store.settled) == 40
    assert max(store.settled) <= 4, store.settled  # 10 ms, and what ends in the turns before and after


@pytest.mark.usefixtures("slow_machine")
async def test_a_worker_that_is_stopped_in_a_rush_reserves_no_more() -> None:
    store = Counting()
    async with TaskQueue(store) as queue:
        await queue.enqueue_many(nothing, [(number,) for number in range(200)])
        await queue.enqueue_many(stop_all, [(number,) for number in range(1000)])
        workers.append(Worker(queue, max_concurrency=10))
        await workers[-1].run_until_empty()
        await asyncio.gather(*stopping)
    assert stopping
    assert store.reserved_late == 0
