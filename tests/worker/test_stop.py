"""How a worker stops: what runs may finish, what does not is given back, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sitq import Event, MemoryBackend, TaskQueue, Worker, WorkerError
from sitq.backends.base import Backend
from sitq.core import ReservedTask, WorkerInfo
from waiting import until

log: list[Any] = []
gate = threading.Event()


@pytest.fixture(autouse=True)
def fresh() -> None:
    log.clear()
    gate.clear()


async def nap(seconds: float) -> str:
    log.append("begun")
    await asyncio.sleep(seconds)
    log.append("done")
    return "slept"


async def deaf() -> None:
    log.append("begun")
    while not gate.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            log.append("ignored")


def stuck() -> None:
    log.append("begun")
    gate.wait(60)


async def test_a_stop_lets_running_tasks_finish(queue: TaskQueue) -> None:
    handle = await queue.enqueue(nap, 0.05)
    async with Worker(queue, grace=60):
        await until(lambda: log == ["begun"])
    assert log == ["begun", "done"]
    assert await handle.result() == "slept"


async def test_what_exceeds_the_grace_is_given_back_at_no_cost(queue: TaskQueue) -> None:
    told: list[Event] = []
    queue.on("released", told.append)
    handle = await queue.enqueue(nap, 60)
    async with Worker(queue, grace=0.01):
        await until(lambda: log == ["begun"])
    stored = await queue.get_task(handle)
    assert stored is not None
    assert (stored.status, stored.attempt, stored.crashes) == ("queued", 0, 0)
    assert [event.task_id for event in told] == [handle]


async def test_reserved_tasks_that_did_not_start_are_given_back(queue: TaskQueue) -> None:
    await queue.enqueue_many(nap, [(60,)] * 5)
    async with Worker(queue, max_concurrency=1, grace=0.01):
        await until(lambda: log == ["begun"])
    (counts,) = await queue.backend.count_tasks()
    assert counts.phases == {"ready": 5}


async def test_a_task_that_ignores_its_cancellation_does_not_hold_up_the_stop(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sitq._session._AFTER_INTERRUPT", 0.05)
    handle = await queue.enqueue(deaf)
    async with Worker(queue, grace=0.01):
        await until(lambda: log == ["begun"])
    stored = await queue.get_task(handle)
    gate.set()
    assert stored is not None
    assert stored.status == "queued"
    assert "ignored" in log


async def test_a_stuck_thread_does_not_hold_up_the_stop(queue: TaskQueue) -> None:
    handle = await queue.enqueue(stuck)
    async with Worker(queue, grace=0.01):
        await until(lambda: log == ["begun"])
    stored = await queue.get_task(handle)
    gate.set()
    assert stored is not None
    assert stored.status == "queued"


async def test_stop_returns_when_the_worker_has_stopped(queue: TaskQueue) -> None:
    worker = Worker(queue)
    await worker.stop()  # not started: nothing to do
    running = asyncio.create_task(worker.start())
    handle = await queue.enqueue(nap, 0.01)
    assert await handle.result(timeout=60) == "slept"
    await worker.stop()
    await running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_it_and_a_second_one_cuts_the_grace(queue: TaskQueue, number: signal.Signals) -> None:
    handle = await queue.enqueue(nap, 60)
    running = asyncio.create_task(Worker(queue, grace=60).start(handle_signals=True))
    await until(lambda: log == ["begun"])
    os.kill(os.getpid(), number)
    await asyncio.sleep(0)
    await until(lambda: not running.done())
    os.kill(os.getpid(), number)
    await running
    stored = await queue.get_task(handle)
    assert stored is not None
    assert stored.status == "queued"
    assert signal.getsignal(number) != signal.SIG_IGN


async def test_nothing_is_reserved_after_a_stop_was_asked_for(queue: TaskQueue) -> None:
    worker = Worker(queue, max_concurrency=1, grace=60)
    running = asyncio.create_task(worker.start())
    first = await queue.enqueue(nap, 0.05)
    await until(lambda: log == ["begun"])
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    second = await queue.enqueue(nap, 0)
    await stopping
    await running
    assert await queue.get_result(first) is not None
    assert await queue.get_result(second) is None


class Flaky(MemoryBackend):
    """Fails in `reserve` and `settle` the first times, as a store does while it restarts."""

    failures = 3

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        self._maybe_fail()
        return await super().reserve(worker, max_tasks)

    async def settle(self, outcomes: Any) -> list[bool]:
        self._maybe_fail()
        return await super().settle(outcomes)

    def clone(self) -> Flaky:
        return self

    def _maybe_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError("the store restarts")


async def test_a_worker_outlives_the_troubles_of_its_store() -> None:
    backend = Flaky()
    async with TaskQueue(backend) as queue, Worker(queue):
        backend.failures = 2
        handle = await queue.enqueue(nap, 0)
        assert await handle.result(timeout=60) == "slept"
        backend.failures = 1
        assert await (await queue.enqueue(nap, 0)).result(timeout=60) == "slept"
    assert log == ["begun", "done"] * 2


class Broken(MemoryBackend):
    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        raise KeyError("a bug in the backend")


async def test_a_worker_that_cannot_go_on_says_so_loudly(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WorkerError, match="a bug in the backend") as caught:
        await Worker(Broken()).start()
    assert isinstance(caught.value.__cause__, KeyError)
    assert "cannot go on" in caplog.text


def test_a_worker_made_before_a_fork_refuses(backend: Backend, capfd: pytest.CaptureFixture[str]) -> None:
    worker = Worker(TaskQueue(backend))
    worker._pid -= 1  # what it is in a forked child
    with pytest.raises(WorkerError, match="before a fork"):
        asyncio.run(worker.start())


@asynccontextmanager
async def _no_pool(queue: TaskQueue) -> AsyncIterator[None]:
    if queue.lifespan is not None:
        raise OSError("no pool")
    yield


async def test_a_lifespan_that_fails_is_raised_at_the_start() -> None:
    with pytest.raises(OSError, match="no pool"):
        async with Worker(TaskQueue(MemoryBackend(), lifespan=_no_pool)):
            pass
