"""What a worker runs and in which order, and what it refuses."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from sitq import (
    Defer,
    MemoryBackend,
    Retry,
    RunCounts,
    TaskFailedError,
    TaskQueue,
    UnsupportedError,
    ValidationError,
    Worker,
    WorkerError,
    task,
)
from sitq.backends.base import Capability
from sitq.core import ReservedTask, WorkerInfo
from waiting import until

seen: list[Any] = []
gate = threading.Event()
name: ContextVar[str] = ContextVar("name", default="fresh")


@pytest.fixture(autouse=True)
def fresh() -> None:
    seen.clear()
    gate.clear()


async def note(what: Any) -> Any:
    seen.append(what)
    return what


def note_thread(what: Any) -> str:
    seen.append(what)
    return threading.current_thread().name


class Tripler:
    async def __call__(self, x: int) -> int:
        return x * 3


async def leave_a_mark() -> str:
    before = name.get()
    name.set("used")
    return before


async def test_all_that_is_there_and_no_more(queue: TaskQueue) -> None:
    handles = await queue.enqueue_many(note, [(n,) for n in range(25)])
    later = await queue.options(delay=3_600).enqueue(note, "later")
    assert await Worker(queue).run_until_empty() == RunCounts(completed=25)
    assert sorted(seen) == list(range(25))
    assert [await handle.result(timeout=60) for handle in handles] == list(range(25))
    assert await queue.get_result(later) is None
    assert await Worker(queue).run_until_empty() == RunCounts()


async def test_higher_priority_first_then_due_time_then_order_of_arrival(queue: TaskQueue) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    await queue.enqueue(note, "a")
    await queue.options(priority=9).enqueue(note, "urgent")
    await queue.enqueue(note, "b")
    await queue.options(priority=5).enqueue(note, "soon")
    await queue.enqueue(note, "early", eta=past)  # due when it came: nothing overtakes by naming an old time
    await Worker(queue, max_concurrency=1).run_until_empty()
    assert seen == ["urgent", "soon", "a", "b", "early"]


async def test_only_the_workers_own_queues(queue: TaskQueue) -> None:
    for where in ("x", "y", "z"):
        await queue.options(queue=where).enqueue(note, where)
    await Worker(queue, queues=["x", "z"]).run_until_empty()
    assert sorted(seen) == ["x", "z"]


async def test_plain_functions_run_in_daemon_threads_of_sitq(queue: TaskQueue) -> None:
    async with Worker(queue):
        where = await (await queue.enqueue(note_thread, 1)).result(timeout=60)
        assert where.startswith("sitq-thread")
        assert await (await queue.enqueue(partial(max, 3), 7)).result(timeout=60) == 7
        assert await (await queue.enqueue(Tripler(), 7)).result(timeout=60) == 21
        assert await (await queue.enqueue(lambda: asyncio.sleep(0, "awaited"))).result(timeout=60) == "awaited"


def wait_for_gate() -> None:
    assert gate.wait(60)
    seen.append("through")


running: list[int] = []


async def busy(n: int) -> None:
    running.append(n)
    seen.append(len(running))
    await asyncio.sleep(0.01)
    running.remove(n)


async def test_as_many_at_once_as_there_are_slots(queue: TaskQueue) -> None:
    await queue.enqueue_many(busy, [(n,) for n in range(12)])
    await Worker(queue, max_concurrency=3).run_until_empty()
    assert max(seen) == 3


async def test_short_tasks_do_not_wait_for_the_store_that_reserves_the_next() -> None:
    """The next ones are asked for while some are held ready, not when the slots have run dry."""
    held: list[int] = []

    class Asked(MemoryBackend):
        reserved = 0

        async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
            held.append(self.reserved - len(seen))
            tasks = await super().reserve(worker, max_tasks)
            self.reserved += len(tasks)
            return tasks

    async with TaskQueue(Asked()) as queue:
        await queue.enqueue_many(note, [(number,) for number in range(6000)])
        await Worker(queue, max_concurrency=2).run_until_empty()
    assert sorted(seen) == list(range(6000))
    early = [count for count in held if count > 2]
    assert len(early) >= 3, f"tasks in the worker's hands when it reserved: {held}"


@pytest.mark.parametrize(("prefetch", "least", "most"), [(0, 1, 2), (250, 100, 252), (1000, 400, 500)])
async def test_a_store_says_how_many_are_held_ready(
    monkeypatch: pytest.MonkeyPatch, prefetch: int, least: int, most: int
) -> None:
    monkeypatch.setattr("sitq._prefetch._AHEAD", 60.0)  # a busy machine takes more than 50 ms to work off so many
    asked: list[int] = []

    class Asked(MemoryBackend):
        async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
            asked.append(max_tasks)
            return await super().reserve(worker, max_tasks)

    Asked.prefetch = prefetch
    async with TaskQueue(Asked()) as queue:
        await queue.enqueue_many(note, [(number,) for number in range(6000)])
        await Worker(queue, max_concurrency=2).run_until_empty()
    assert least <= max(asked) <= most, asked


ends: list[asyncio.Event] = []


async def wait_for_the_end() -> None:
    seen.append("long")
    await ends[-1].wait()


async def test_what_is_held_behind_a_long_task_goes_to_an_idle_worker(queue: TaskQueue) -> None:
    ends.append(asyncio.Event())
    await queue.enqueue_many(note, [(number,) for number in range(300)])
    long = await queue.enqueue(wait_for_the_end)
    async with Worker(queue, max_concurrency=1, lease=3600.0):
        await until(lambda: "long" in seen)
        await queue.enqueue_many(note, [(number,) for number in range(300, 500)])
        async with Worker(queue, max_concurrency=1, lease=3600.0):
            await until(lambda: len(seen) == 501)
            ends[-1].set()
            await long.result(timeout=60)
    assert sorted(number for number in seen if number != "long") == list(range(500))


async def fail() -> None:
    seen.append("try")
    raise ValueError("again")


async def test_a_retry_the_store_knows_nothing_of_waits_here_for_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(MemoryBackend):
        capabilities = MemoryBackend.capabilities & ~Capability.DEFER

    monkeypatch.setattr("sitq._session.GIVE_BACK_AFTER", 0.0)
    monkeypatch.setattr("sitq.retry.backoff", lambda *_: 0.3)  # the long task has the slot by then
    ends.append(asyncio.Event())
    given_back: list[object] = []
    async with TaskQueue(Forgets()) as queue:
        queue.on("released", given_back.append)
        async with Worker(queue, max_concurrency=1) as worker:
            failing = await queue.options(retry=Retry(max_attempts=2)).enqueue(fail)
            await until(lambda: "try" in seen)
            await queue.enqueue(wait_for_the_end)
            session = worker._session
            assert session is not None
            await until(lambda: bool(session._backlog or given_back))
            ends[-1].set()
            with pytest.raises(TaskFailedError):
                await failing.result(timeout=60)
    assert seen == ["try", "long", "try"]


async def test_an_async_task_runs_beside_a_blocked_thread(queue: TaskQueue) -> None:
    async with Worker(queue, max_concurrency=2):
        await queue.enqueue(wait_for_gate)
        assert await (await queue.enqueue(note, "beside")).result(timeout=60) == "beside"
        gate.set()
        await until(lambda: seen == ["beside", "through"])


async def test_tasks_do_not_see_each_others_context_variables(queue: TaskQueue) -> None:
    handles = await queue.enqueue_many(leave_a_mark, [()] * 5)
    await Worker(queue, max_concurrency=1).run_until_empty()
    assert [await handle.result(timeout=60) for handle in handles] == ["fresh"] * 5


async def ends_the_interpreter() -> None:
    sys.exit(3)


def ends_the_thread() -> None:
    raise SystemExit(4)


def stops_iterating() -> None:
    raise StopIteration("over")


async def cancels_itself() -> None:
    raise asyncio.CancelledError("mine")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (ends_the_interpreter, "SystemExit: 3"),
        (ends_the_thread, "SystemExit: 4"),
        (stops_iterating, "StopIteration: over"),
        (cancels_itself, "CancelledError: mine"),
    ],
)
async def test_whatever_a_task_raises_the_worker_goes_on(queue: TaskQueue, function: Any, error: str) -> None:
    async with Worker(queue):
        result = await queue.get_result(await queue.enqueue(function), timeout=60)
        assert result is not None
        assert (result.status, result.error) == ("failed", error) or "StopIteration" in str(result.error)
        assert await (await queue.enqueue(note, "on")).result(timeout=60) == "on"


async def fails_at_length() -> None:
    raise ValueError("begun " + "x" * 3_000_000 + " ended")


async def test_an_endless_error_is_kept_without_its_middle(queue: TaskQueue) -> None:
    async with Worker(queue):
        result = await queue.get_result(await queue.enqueue(fails_at_length), timeout=60)
    assert result is not None
    assert result.error is not None
    assert result.traceback is not None
    for text, longest in ((result.error, 10_000), (result.traceback, 100_000)):
        assert longest < len(text) < longest + 50
        assert "characters left out" in text
        assert text.rstrip().endswith(" ended")
    assert result.error.startswith("ValueError: begun ")
    assert result.traceback.startswith("Traceback (most recent call last)")


async def swallows() -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "kept"
    return "slept"


async def test_a_task_that_swallows_its_timeout_and_returns_has_succeeded(queue: TaskQueue) -> None:
    async with Worker(queue):
        result = await queue.get_result(await queue.options(timeout=0.05).enqueue(swallows), timeout=60)
    assert result is not None
    assert (result.status, result.value, result.reason) == ("success", "kept", None)


async def test_a_due_task_starts_and_not_before(queue: TaskQueue) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.2)
    async with Worker(queue):
        handle = await queue.enqueue(started_at, eta=due)
        assert datetime.fromisoformat(await handle.result(timeout=60)) >= due


async def started_at() -> str:
    return datetime.now(UTC).isoformat()


async def test_an_expired_task_never_runs(queue: TaskQueue) -> None:
    handle = await queue.options(expires=0.0).enqueue(note, "late")
    await Worker(queue).run_until_empty()
    result = await queue.get_result(handle)
    assert result is not None
    assert (result.status, result.reason) == ("failed", "expired")
    assert seen == []


attempts: list[int] = []


@task(retry=Retry(max_attempts=4, base=0.001), give_up_on=KeyError)
async def flaky(fail: int, error: str = "ValueError") -> int:
    from sitq import current_task

    attempts.append(current_task().attempt)
    if len(attempts) <= fail:
        raise {"ValueError": ValueError, "KeyError": KeyError}[error]("again")
    return len(attempts)


@pytest.fixture(autouse=True)
def _no_attempts() -> None:
    attempts.clear()


async def test_retries_count_attempts_until_one_succeeds(queue: TaskQueue) -> None:
    handle = await queue.enqueue(flaky, 2)
    assert await Worker(queue).run_until_empty() == RunCounts(completed=1, deferred=2)
    result = await queue.get_result(handle)
    assert result is not None
    assert (result.value, result.attempts, attempts) == (3, 3, [1, 2, 3])


async def test_retries_end_with_the_last_attempt(queue: TaskQueue) -> None:
    handle = await queue.enqueue(flaky, 99)
    assert await Worker(queue).run_until_empty() == RunCounts(failed=1, deferred=3)
    result = await queue.get_result(handle)
    assert result is not None
    assert (result.error, result.attempts, attempts) == ("ValueError: again", 4, [1, 2, 3, 4])


async def test_some_exceptions_are_not_worth_a_retry(queue: TaskQueue) -> None:
    handle = await queue.enqueue(flaky, 99, error="KeyError")
    await Worker(queue).run_until_empty()
    result = await queue.get_result(handle)
    assert result is not None
    assert (result.attempts, attempts) == (1, [1])


async def test_one_attempt_unless_told_otherwise(queue: TaskQueue) -> None:
    async def once() -> None:
        raise ValueError

    handle = await queue.enqueue(once)
    assert await Worker(queue).run_until_empty() == RunCounts(failed=1)
    assert await queue.get_result(handle) is not None


async def poll() -> int:
    from sitq import current_task

    attempts.append(current_task().attempt)
    if len(attempts) < 4:
        raise Defer(timedelta(milliseconds=1), reason="not there yet")
    return len(attempts)


async def test_defer_runs_again_and_costs_no_attempt(queue: TaskQueue) -> None:
    handle = await queue.enqueue(poll)
    async with Worker(queue):
        assert await handle.result(timeout=60) == 4
    assert attempts == [1, 1, 1, 1]


def test_defer_checks_its_delay() -> None:
    for delay in (-1, float("inf"), "soon"):
        with pytest.raises(ValidationError, match="Defer takes"):
            Defer(delay)  # type: ignore[arg-type]


async def sleepy() -> None:
    await asyncio.sleep(60)


async def raises_timeout() -> None:
    raise TimeoutError("the site's own")


def slow_thread() -> str:
    from sitq import current_task

    current = current_task()
    while not current.cancelled:
        time.sleep(0.001)
    seen.append("saw it")
    return "too late"


@pytest.mark.parametrize("function", [sleepy, slow_thread])
async def test_a_timeout_ends_an_attempt(queue: TaskQueue, function: Any) -> None:
    handle = await queue.options(timeout=0.05).enqueue(function)
    async with Worker(queue):
        result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert (result.status, result.reason) == ("failed", "timeout")
    assert result.error == "TimeoutError: took longer than 0.05 seconds"


async def test_a_timeout_of_the_tasks_own_is_an_ordinary_error(queue: TaskQueue) -> None:
    handle = await queue.options(timeout=60).enqueue(raises_timeout)
    async with Worker(queue):
        result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert (result.reason, result.error) == ("error", "TimeoutError: the site's own")


@pytest.mark.parametrize(
    "values",
    [
        {"max_concurrency": 0},
        {"max_concurrency": 1.5},
        {"poll_interval": 0},
        {"lease": 0},
        {"lease": None},
        {"grace": -1},
        {"queues": "mail"},
        {"queues": []},
    ],
    ids=str,
)
def test_bad_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        Worker(TaskQueue(MemoryBackend()), **values)


def test_a_worker_needs_a_queue() -> None:
    with pytest.raises(ValidationError, match="needs a TaskQueue"):
        Worker(5)  # type: ignore[arg-type]


async def test_a_worker_on_a_bare_backend() -> None:
    backend = MemoryBackend()
    handle = await TaskQueue(backend).enqueue(note, 1)
    assert await Worker(backend).run_until_empty() == RunCounts(completed=1)
    assert await handle.result() == 1


async def test_one_worker_works_once_at_a_time(queue: TaskQueue) -> None:
    async with Worker(queue) as worker:
        with pytest.raises(WorkerError, match="running already"):
            await worker.start()
    async with worker:
        assert await (await queue.enqueue(note, 1)).result(timeout=60) == 1


async def test_named_queues_need_a_store_that_has_them() -> None:
    class NoQueues(MemoryBackend):
        capabilities = MemoryBackend.capabilities & ~Capability.QUEUES

    with pytest.raises(UnsupportedError, match="QUEUES"):
        async with Worker(NoQueues(), queues=["mail"]):
            pass


async def test_the_failure_of_the_task_reaches_the_caller(queue: TaskQueue) -> None:
    handle = await queue.enqueue(flaky, 99, error="KeyError")
    async with Worker(queue):
        with pytest.raises(TaskFailedError, match="KeyError"):
            await handle.result(timeout=60)
