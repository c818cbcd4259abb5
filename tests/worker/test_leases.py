"""Leases under stress: blocked loops keep them, cut-off workers stop, and stale workers change nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from sitq import Event, MemoryBackend, Phase, Result, TaskQueue, Worker
from sitq.backends.base import Backend
from sitq.core import Extended, Held, Outcome, ReservedTask, TaskFilter, WorkerInfo, phase_of, utcnow
from sitq.exceptions import BackendError
from waiting import DEADLINE, until

log: list[Any] = []
gate = threading.Event()


@pytest.fixture(autouse=True)
def fresh() -> None:
    log.clear()
    gate.clear()


async def block_the_loop() -> str:
    log.append("begun")
    assert gate.wait(DEADLINE), "nobody opened the gate"
    return "done"


def watch(backend: Backend, lease: float) -> list[str]:
    """Work beside a blocked worker until its lease has been renewed a few times; return what was run here."""

    async def the_end(queue: TaskQueue) -> Any:
        while not (running := await queue.backend.list_tasks(TaskFilter(phase=Phase.RUNNING))):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return running[0].lease_expires_at

    async def watch_it() -> list[str]:
        ran: list[str] = []
        async with TaskQueue(backend.clone()) as queue:
            queue.on("started", lambda event: ran.append(event.task_id or ""))
            ends = {await the_end(queue)}
            async with Worker(queue, lease=lease):
                while len(ends) < 5:
                    ends.add(await the_end(queue))
                    await asyncio.sleep(0.005)
                gate.set()
        return ran

    return asyncio.run(asyncio.wait_for(watch_it(), DEADLINE))


async def test_a_task_that_blocks_the_event_loop_keeps_its_lease(queue: TaskQueue) -> None:
    watching = asyncio.get_running_loop().run_in_executor(None, watch, queue.backend, 0.6)
    handle = await queue.enqueue(block_the_loop)
    async with Worker(queue, lease=0.6):
        result = await queue.get_result(handle, timeout=60)
    assert await watching == []
    assert result is not None
    assert (result.value, result.attempts) == ("done", 1)


async def wait_long() -> None:
    log.append("begun")
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        log.append("stopped")
        raise


class Cut(MemoryBackend):
    """A store that can be cut off from one worker."""

    cut = False

    def clone(self) -> Cut:
        return self

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        if self.cut:
            raise BackendError("no route to the store")
        return await super().extend_leases(worker, held)


async def test_a_worker_cut_off_from_its_store_stops_its_own_work() -> None:
    told: list[Event] = []
    backend = Cut()
    async with TaskQueue(backend) as queue:
        queue.on("lease_lost", told.append)
        handle = await queue.enqueue(wait_long)
        async with Worker(queue, lease=0.3, max_concurrency=1):
            await until(lambda: log == ["begun"])
            backend.cut = True
            await until(lambda: log[:2] == ["begun", "stopped"], "the end of the work")
            await until(lambda: [event.task_id for event in told][:1] == [handle])
            await queue.cancel(handle)


class Deaf(MemoryBackend):
    """A store that takes new work and hands it out once, and never answers again."""

    handed_out = False

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        if self.handed_out:
            return []
        found = await super().reserve(worker, max_tasks)
        self.handed_out = bool(found)
        return found

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        raise BackendError("no answer")

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        raise BackendError("no answer")


async def quick() -> None:
    log.append("ran")


async def test_an_outcome_nobody_takes_is_repeated_until_the_lease_ends_and_then_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []
    async with TaskQueue(Deaf()) as queue:
        queue.on("lease_lost", told.append)
        async with Worker(queue, lease=0.3, grace=60):
            handle = await queue.enqueue(quick)
            await until(lambda: bool(told), "the event")
            await queue.cancel(handle)
    assert told[0].task_id == handle
    assert "could not be delivered before its lease ended" in caplog.text
    assert caplog.text.count("cannot settle") > 1


class Hasty(MemoryBackend):
    """A store that always says there is work, without ever giving up the event loop."""

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        return

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        return []


async def test_a_store_that_promises_work_and_has_none_starves_nobody() -> None:
    async with TaskQueue(Hasty()) as queue, Worker(queue):
        handle = await queue.enqueue(quick)
        await asyncio.sleep(0.01)
        assert await queue.cancel(handle)


async def reserve_one(backend: Backend, worker: WorkerInfo) -> ReservedTask:
    found: list[ReservedTask] = []

    async def reserved() -> bool:
        found.extend(await backend.reserve(worker, 1))
        return bool(found)

    await until(reserved, "a task to reserve")
    return found[0]


async def test_a_thousand_stale_writes_and_none_is_accepted(queue: TaskQueue) -> None:
    backend = queue.backend
    handle = await queue.enqueue(quick)
    stale = WorkerInfo(id="stale", lease=0.05)
    old = await reserve_one(backend, stale)
    new = await reserve_one(backend, WorkerInfo(id="new", lease=600))
    assert old.fence is not None
    assert new.fence is not None
    assert new.fence > old.fence
    assert (new.attempt, new.crashes) == (2, 1)
    wrong = Result(task_id=handle, payload=queue.serializer.encode_result(handle, "stale"))
    stale_outcomes = [
        Outcome.completed(handle, old.fence, wrong),
        Outcome.failed(handle, old.fence, dataclasses.replace(wrong, status="failed", reason="error")),
        Outcome.deferred(handle, old.fence, 5),
        Outcome.released(handle, old.fence),
    ]
    for n in range(250):
        assert await backend.settle(stale_outcomes) == [False] * 4
        answer = await backend.extend_leases(stale, [Held(id=handle, fence=old.fence, progress=n)])
        assert answer.lost == {handle}
    stored = await queue.get_task(handle)
    assert stored is not None
    assert (stored.progress, stored.worker_id, phase_of(stored, utcnow())) == (None, "new", Phase.RUNNING)
    right = Result(task_id=handle, payload=queue.serializer.encode_result(handle, "right"))
    assert await backend.settle([Outcome.completed(handle, new.fence, right)]) == [True]
    assert await backend.settle(stale_outcomes) == [False] * 4
    result = await queue.get_result(handle)
    assert result is not None
    assert result.value == "right"
