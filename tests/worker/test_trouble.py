"""What goes wrong in tasks and stores, and must neither stop a worker nor lose a task."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from sitq import (
    BackendError,
    Defer,
    Discard,
    MemoryBackend,
    RunCounts,
    TaskFailedError,
    TaskQueue,
    ValidationError,
    Worker,
    current_task,
    task,
)
from sitq.backends.base import Backend, Capability
from sitq.core import Extended, Held, NewTask, Outcome, ReservedTask, Task, TaskOptions, WorkerInfo, utcnow
from waiting import until

log: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    log.clear()


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Rude(BaseException):
    pass


async def mute() -> None:
    raise MuteError


async def rude() -> None:
    raise Rude("out of the way")


def rude_thread() -> None:
    raise Rude("out of the way")


async def interrupted() -> None:
    raise KeyboardInterrupt


def interrupted_thread() -> None:
    raise KeyboardInterrupt


async def odd_text() -> None:
    raise ValueError("file \udc80 \0")


async def odd_discard() -> None:
    raise Discard(ValueError("x"))  # type: ignore[arg-type]


async def odd_reason() -> None:
    raise Defer(0.001, "unresolvable since yesterday")


async def fine(x: int = 1) -> int:
    log.append("fine")
    return x


@pytest.mark.parametrize(
    "function",
    [mute, rude, rude_thread, interrupted, interrupted_thread, odd_text, odd_discard],
    ids=lambda f: f.__name__,
)
async def test_no_exception_takes_a_slot_with_it(queue: TaskQueue, function: Any) -> None:
    bad = await queue.enqueue(function)
    good = await queue.enqueue(fine)
    async with Worker(queue, max_concurrency=1):
        assert await good.result(timeout=60) == 1
        with pytest.raises(TaskFailedError):
            await bad.result(timeout=60)


async def test_a_reason_that_looks_like_ours_is_not_read_as_ours(queue: TaskQueue) -> None:
    handle = await queue.enqueue(odd_reason)
    async with Worker(queue):

        async def waits() -> bool:
            stored = await queue.get_task(handle)
            return stored is not None and stored.reason == "unresolvable since yesterday"

        await until(waits)
        await queue.cancel(handle)


class Choosy(MemoryBackend):
    """A store that cannot hold certain results."""

    error: type[Exception] = BackendError

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        if any(o.result is not None and o.result.payload and b"unstorable" in o.result.payload for o in outcomes):
            raise self.error("disk trouble")
        return await super().settle(outcomes)


async def unstorable() -> str:
    return "unstorable"


@pytest.mark.parametrize("error", [BackendError, UnicodeError])
async def test_an_outcome_the_store_cannot_hold_fails_its_task_and_no_other(error: type[Exception]) -> None:
    backend = Choosy()
    backend.error = error
    async with TaskQueue(backend) as queue, Worker(queue, max_concurrency=2):
        bad = await queue.enqueue(unstorable)

        async def settled() -> bool:
            assert await (await queue.enqueue(fine)).result(timeout=60) == 1  # the others pass
            return await queue.get_result(bad) is not None

        await until(settled)
        with pytest.raises(TaskFailedError, match="could not be stored"):
            await bad.result(timeout=60)


class Stuck(MemoryBackend):
    """A store that reserves, and is slow to settle."""

    def __init__(self) -> None:
        super().__init__()
        self.reserved = 0
        self.lets_go = asyncio.Event()

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        tasks = await super().reserve(worker, max_tasks)
        self.reserved += len(tasks)
        return tasks

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        await self.lets_go.wait()
        return await super().settle(outcomes)


async def test_a_worker_does_not_reserve_ever_more_than_it_can_settle() -> None:
    """Each task it holds has a lease to extend, and runs again when that ends."""
    backend = Stuck()
    async with TaskQueue(backend) as queue:
        handles = await queue.enqueue_many(fine, [()] * 5000)
        async with Worker(queue):
            await until(lambda: backend.reserved >= 2000)
            for _ in range(5000):  # turns in which it could have reserved the rest
                await asyncio.sleep(0)
            assert backend.reserved < 4000
            backend.lets_go.set()
            assert await handles[-1].result(timeout=60) == 1


class Late(MemoryBackend):
    """A store that takes a task back at once, and says so only when `says_so` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.says_so = asyncio.Event()

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        answers = await super().settle(outcomes)
        if any(outcome.kind == "released" for outcome in outcomes):
            await self.says_so.wait()
        return answers


async def second_time_lucky() -> int:
    log.append("ran")
    if len(log) == 1:
        raise Defer(0)
    backend = current_task().queue.backend
    assert isinstance(backend, Late)
    backend.says_so.set()
    return len(log)


async def test_a_task_that_was_given_back_and_comes_again_is_not_lost() -> None:
    """Stores that settle and reserve side by side may hand it out before the worker knows that they took it."""
    async with TaskQueue(Late()) as queue:
        lost: list[Any] = []
        queue.on("lease_lost", lost.append)
        async with Worker(queue):
            assert await (await queue.enqueue(second_time_lucky)).result(timeout=60) == 2
    assert lost == []


class Ahead(MemoryBackend):
    """A store whose clock runs ahead of the worker's."""

    def __init__(self) -> None:
        super().__init__()
        self._store.clock_offset = 3_600.0


async def test_a_worker_whose_clock_is_behind_runs_what_the_store_says_is_due() -> None:
    async with TaskQueue(Ahead()) as queue:
        handle = await queue.enqueue(fine, eta=utcnow() + timedelta(minutes=30))
        async with Worker(queue):
            assert await handle.result(timeout=60) == 1


class Slow(MemoryBackend):
    """A store whose answers to heartbeats can be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = asyncio.Event()
        self.asked = asyncio.Event()

    def clone(self) -> Any:
        return MemoryBackend()  # the heartbeat's own handle is not held up

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        self.asked.set()
        await self.hold.wait()
        return await super().extend_leases(worker, held)


async def reports_at_the_end() -> str:
    current_task().progress("all")
    log.append("ran")
    return "value"


async def test_a_stop_while_the_last_progress_is_handed_over_keeps_the_outcome() -> None:
    backend = Slow()
    async with TaskQueue(backend) as queue:
        handle = await queue.enqueue(reports_at_the_end)
        worker = Worker(queue, grace=0.01, lease=600)
        async with worker:
            await backend.asked.wait()
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0.1)  # past the grace: what has ended must not be interrupted
            backend.hold.set()
            await stopping
        assert await handle.result(timeout=60) == "value"
    assert log == ["ran"]


async def wait_long() -> None:
    log.append("begun")
    await asyncio.sleep(600)


async def test_a_late_answer_of_the_store_does_not_stop_the_next_run(queue: TaskQueue) -> None:
    handle = await queue.enqueue(wait_long)
    worker = Worker(queue, grace=0.01)
    async with worker:
        await until(lambda: log == ["begun"])
        session = worker._session
        assert session is not None
        earlier = [run for run in session._held.values() if run.reserved.id == handle]
        answer = Extended(lost=frozenset({str(handle)}))
        session._heard([], answer)  # asked of an earlier run: this one goes on
        assert earlier[0].stop_reason is None
        session._heard(earlier, answer)
        assert earlier[0].stop_reason == "lost"


async def test_a_cancelled_worker_gives_back_what_it_held(queue: TaskQueue) -> None:
    handle = await queue.enqueue(wait_long)
    running = asyncio.create_task(Worker(queue).start())
    await until(lambda: log == ["begun"])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    stored = await queue.get_task(handle)
    assert stored is not None
    assert (stored.status, stored.attempt, stored.crashes) == ("queued", 0, 0)
    assert await queue.backend.list_workers() == []


class SlowToConnect(MemoryBackend):
    async def connect(self) -> None:
        log.append("connecting")
        await asyncio.Event().wait()


async def test_a_cancelled_start_leaves_no_worker_behind() -> None:
    async def enter() -> None:
        async with Worker(SlowToConnect()):
            pass

    entering = asyncio.create_task(enter())
    await until(lambda: log == ["connecting"])
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert len(asyncio.all_tasks()) == 1


class Forgetful(MemoryBackend):
    """A store that hands tasks out before their time and can look at nothing."""

    capabilities = Capability(0)

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        self._store.clock_offset += 7_200
        reserved = await super().reserve(worker, max_tasks)
        self._store.clock_offset -= 7_200
        for task_ in reserved:
            task_.reserved_at = None
        return reserved


async def test_until_empty_leaves_later_tasks_whatever_the_store() -> None:
    async with TaskQueue(Forgetful()) as queue:
        later = await queue.options(delay=3_600).enqueue(fine)
        now = await queue.enqueue(fine)
        assert await Worker(queue).run_until_empty() == RunCounts(completed=1)
        assert await now.result(timeout=60) == 1
        assert await queue.get_result(later) is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the test process has threads; its child only exits
def test_a_store_in_memory_does_not_cross_a_fork() -> None:
    queue = TaskQueue(MemoryBackend())
    asyncio.run(queue.connect())
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(queue.enqueue(fine))
        except BackendError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("option", ["delay", "expires", "timeout", "retention"])
def test_no_time_beyond_a_century(option: str, backend: Backend) -> None:
    with pytest.raises(ValidationError, match="100 years"):
        TaskQueue(backend).options(**{option: 1e12})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="100 years"):
        Defer(1e12)


@pytest.mark.parametrize("option", ["eta", "expires"])
def test_never_is_not_a_moment(option: str, backend: Backend) -> None:
    for moment in (datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))):
        with pytest.raises(ValidationError, match=r"100 years|calendar"):
            TaskQueue(backend).options(**{option: moment})  # type: ignore[arg-type]


async def test_a_row_from_beyond_the_calendar_hides_no_other(backend: Backend) -> None:
    never = datetime.max.replace(tzinfo=UTC)
    async with TaskQueue(backend) as queue:
        serializer = queue.serializer
        payload = serializer.encode_call("never", "test_trouble:fine", fine, (), {})
        options = TaskOptions(expires_at=never)
        row = Task(id="never", name="test_trouble:fine", payload=payload, options=options)
        await backend.enqueue_tasks([NewTask(task=row)])
        good = await queue.enqueue(fine)
        async with Worker(queue):
            assert await good.result(timeout=60) == 1
            assert await queue.get_result("never", timeout=60) is not None
        assert {listed.id for listed in await backend.list_tasks()} == {"never", str(good)}


async def own_eta(eta: object = "default") -> object:
    return eta


async def test_none_as_a_functions_own_eta_is_not_dropped(queue: TaskQueue) -> None:
    with pytest.raises(ValidationError, match="options"):
        await queue.enqueue(own_eta, eta=None)
    handle = await queue.options().enqueue(own_eta, eta=None)
    async with Worker(queue):
        assert await handle.result(timeout=60) is None


async def test_async_functions_are_not_for_threads(queue: TaskQueue) -> None:
    with pytest.raises(ValidationError, match="for plain functions"):
        await queue.options(executor="thread").enqueue(fine)
    with pytest.raises(ValidationError, match="for plain functions"):
        await queue.enqueue(task(executor="thread")(wait_long_too))


async def wait_long_too() -> None: ...
