"""What a task sees of itself, and what surrounds it: progress, cancellation, state, middleware, events."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sitq import CurrentTask, Event, EventName, SitqError, TaskQueue, ValidationError, Worker, current_task, task
from sitq.backends.base import Backend
from waiting import until

log: list[Any] = []
gate = threading.Event()


@pytest.fixture(autouse=True)
def fresh() -> None:
    log.clear()
    gate.clear()


async def describe() -> dict[str, Any]:
    me = current_task()
    return {"id": me.id, "attempt": me.attempt, "name": me.name, "queue": me.queue_name, "fenced": me.fence}


async def child(n: int) -> int:
    return n


async def parent(n: int) -> list[str]:
    return [str(await current_task().queue.enqueue(child, k)) for k in range(n)]


async def reports() -> None:
    current_task().progress({"done": 1, "of": 2})
    while not gate.is_set():  # noqa: ASYNC110 (set from outside the loop)
        await asyncio.sleep(0.005)
    current_task().progress({"done": 2, "of": 2})


def blocks_and_reports() -> None:
    current_task().progress("from a thread")
    gate.wait(60)


async def reports_badly() -> None:
    current_task().progress(object())


async def waits() -> None:
    log.append("begun")
    await asyncio.sleep(60)


def waits_in_a_thread() -> str:
    log.append("begun")
    me = current_task()
    while not me.cancelled:
        time.sleep(0.002)
    return "noticed"


async def finishes_anyway() -> str:
    log.append("begun")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "finished first"
    return "never"


async def test_a_task_knows_itself(queue: TaskQueue) -> None:
    handle = await queue.options(queue="q").enqueue(describe)
    async with Worker(queue):
        me = await handle.result(timeout=60)
    assert me["id"] == handle
    assert (me["attempt"], me["name"], me["queue"]) == (1, "test_inside:describe", "q")
    assert isinstance(me["fenced"], int)


def test_outside_of_a_task_there_is_none() -> None:
    with pytest.raises(SitqError, match="inside a task only"):
        current_task()


async def test_a_task_enqueues_others(queue: TaskQueue) -> None:
    async with Worker(queue):
        ids = await (await queue.enqueue(parent, 3)).result(timeout=60)
        results = [await queue.get_result(task_id, timeout=60) for task_id in ids]
    assert [result.value for result in results if result] == [0, 1, 2]


async def test_progress_is_seen_while_it_runs_and_at_the_end(queue: TaskQueue) -> None:
    async def progress() -> Any:
        stored = await queue.get_task(handle)
        return stored.progress if stored else None

    async def first() -> bool:
        return bool(await progress() == {"done": 1, "of": 2})

    handle = await queue.enqueue(reports)
    async with Worker(queue):
        await until(first)
        gate.set()
        await handle.result(timeout=60)
        assert await progress() == {"done": 2, "of": 2}


async def test_progress_from_a_thread(queue: TaskQueue) -> None:
    async def seen() -> bool:
        stored = await queue.get_task(handle)
        return stored is not None and stored.progress == "from a thread"

    handle = await queue.enqueue(blocks_and_reports)
    async with Worker(queue):
        await until(seen)
        gate.set()


async def test_progress_is_plain_data(queue: TaskQueue) -> None:
    handle = await queue.enqueue(reports_badly)
    async with Worker(queue):
        result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert "progress is plain data" in str(result.error)


@pytest.mark.parametrize("function", [waits, waits_in_a_thread])
async def test_a_running_task_is_cancelled(queue: TaskQueue, function: Any) -> None:
    handle = await queue.options(retry=5).enqueue(function)
    async with Worker(queue):
        await until(lambda: log == ["begun"])
        assert await queue.cancel(handle) == "requested"
        result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert (result.status, result.reason, result.attempts) == ("failed", "cancelled", 1)


async def test_the_first_settle_wins_over_a_cancellation(queue: TaskQueue) -> None:
    handle = await queue.enqueue(finishes_anyway)
    async with Worker(queue):
        await until(lambda: log == ["begun"])
        await queue.cancel(handle)
        assert await handle.result(timeout=60) == "finished first"


async def uses_state(key: str) -> Any:
    return current_task().state[key]


async def test_the_lifespan_opens_what_tasks_need(backend: Backend) -> None:
    @asynccontextmanager
    async def lifespan(queue: TaskQueue) -> AsyncIterator[dict[str, int]]:
        log.append("open")
        yield {"answer": 42}
        log.append("close")

    async with TaskQueue(backend, lifespan=lifespan) as queue:
        async with Worker(queue):
            assert await (await queue.enqueue(uses_state, "answer")).result(timeout=60) == 42
            assert log == ["open"]
        assert log == ["open", "close"]


async def test_middleware_is_an_onion(backend: Backend) -> None:
    def layer(name: str) -> Callable[[CurrentTask, Callable[[], Awaitable[Any]]], Awaitable[Any]]:
        async def middleware(me: CurrentTask, call: Callable[[], Awaitable[Any]]) -> Any:
            log.append(f"{name} in {me.context['tenant']}")
            try:
                return (await call()) + 1
            finally:
                log.append(f"{name} out")

        return middleware

    async with TaskQueue(backend, middleware=[layer("outer"), layer("inner")]) as queue:
        handle = await queue.options(context={"tenant": "acme"}).enqueue(child, 1)
        async with Worker(queue):
            assert await handle.result(timeout=60) == 3
    assert log == ["outer in acme", "inner in acme", "inner out", "outer out"]


async def test_middleware_is_bound_by_the_timeout_and_its_errors_fail_the_task(backend: Backend) -> None:
    async def grumpy(me: CurrentTask, call: Callable[[], Awaitable[Any]]) -> Any:
        raise PermissionError("not today")

    async with TaskQueue(backend, middleware=[grumpy]) as queue:
        handle = await queue.options(timeout=60).enqueue(child, 1)
        async with Worker(queue):
            result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert result.error == "PermissionError: not today"


@task(retry=2)
async def fails() -> None:
    raise ValueError("no")


async def test_events_tell_the_life_of_tasks_and_worker(queue: TaskQueue) -> None:
    told: list[Event] = []
    for name in EventName:
        queue.on(name, told.append)
    good = await queue.enqueue(child, 1)
    bad = await queue.enqueue(fails)
    await Worker(queue, max_concurrency=1).run_until_empty()
    lives = {h: [e.name for e in told if e.task_id == h] for h in (good, bad)}
    assert lives[good] == ["enqueued", "started", "succeeded"]
    assert lives[bad] == ["enqueued", "started", "deferred", "started", "failed"]
    assert [e.name for e in told if e.task_id is None] == ["worker_started", "worker_stopped"]
    failed = next(e for e in told if e.name == "failed")
    assert (failed.attempt, failed.error, failed.reason, failed.queue) == (2, "ValueError: no", "error", "default")
    assert failed.duration is not None


async def test_a_callback_that_raises_disturbs_nothing(queue: TaskQueue, caplog: pytest.LogCaptureFixture) -> None:
    def bad(event: Event) -> None:
        raise RuntimeError("my own fault")

    queue.on("succeeded", bad)
    handle = await queue.enqueue(child, 1)
    async with Worker(queue):
        assert await handle.result(timeout=60) == 1
        await until(lambda: "my own fault" in caplog.text)


async def _coroutine(event: Event) -> None: ...


@pytest.mark.parametrize(("name", "callback"), [("explodes", log.append), ("failed", _coroutine), ("failed", 5)])
def test_listeners_are_checked(name: str, callback: Any) -> None:
    with pytest.raises(ValidationError, match=r"no event|plain function"):
        TaskQueue("memory://").on(name, callback)
