"""What a producer reads: results, failures, cancellation and time limits."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from sitq import (
    Cancelled,
    Discard,
    Result,
    ResultTimeoutError,
    SerializationError,
    TaskFailedError,
    TaskNotFoundError,
    TaskQueue,
    ValidationError,
    Worker,
)
from sitq.backends.base import Backend


async def double(x: int) -> int:
    return 2 * x


async def broken() -> None:
    raise LookupError("no such thing")


async def give_up() -> None:
    raise Discard("not needed")


def local_class() -> object:
    return lambda: None


async def unstorable() -> object:
    return (n for n in range(3))


async def test_a_result_has_value_times_and_attempts(queue: TaskQueue) -> None:
    handle = await queue.enqueue(double, 21)
    assert await queue.get_result(handle) is None
    async with Worker(queue):
        result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert (result.status, result.value, result.attempts, result.reason) == ("success", 42, 1, None)
    assert result.enqueued_at is not None
    assert result.started_at is not None
    assert result.finished_at is not None
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert queue.deserialize_result(result) == 42
    stored = await queue.get_task(handle)
    assert stored is not None
    assert stored.status == "completed"


async def test_a_failure_has_error_traceback_and_reason(queue: TaskQueue) -> None:
    handle = await queue.enqueue(broken)
    async with Worker(queue):
        with pytest.raises(TaskFailedError, match="LookupError: no such thing") as caught:
            await handle.result(timeout=60)
    result = caught.value.result
    assert (result.status, result.error, result.reason) == ("failed", "LookupError: no such thing", "error")
    assert result.traceback is not None
    assert "raise LookupError" in result.traceback
    assert "_execute.py" not in result.traceback
    assert pickle.loads(pickle.dumps(caught.value)).result == result


async def test_discard_fails_without_a_traceback(queue: TaskQueue) -> None:
    handle = await queue.options(retry=5).enqueue(give_up)
    async with Worker(queue):
        result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert (result.status, result.reason, result.error, result.traceback) == ("failed", "discarded", "not needed", None)
    assert result.attempts == 1


async def test_a_result_that_cannot_be_stored_fails_the_task(queue: TaskQueue) -> None:
    handle = await queue.enqueue(unstorable)
    async with Worker(queue):
        result = await queue.get_result(handle, timeout=60)
    assert result is not None
    assert result.status == "failed"
    assert result.error is not None
    assert "cannot pickle the result" in result.error


async def test_lambdas_as_tasks_and_as_results(queue: TaskQueue) -> None:
    async with Worker(queue):
        assert await (await queue.enqueue(lambda x: x + 1, 4)).result(timeout=60) == 5
        function = await (await queue.enqueue(local_class)).result(timeout=60)
    assert callable(function)


async def test_no_result_in_time(queue: TaskQueue) -> None:
    handle = await queue.enqueue(double, 1)
    assert await queue.get_result(handle, timeout=0.01) is None
    with pytest.raises(ResultTimeoutError, match="wait longer"):
        await handle.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0)
    with pytest.raises(ValidationError, match="timeout"):
        await queue.get_result(handle, timeout=-1)


async def test_unknown_ids(queue: TaskQueue) -> None:
    assert await queue.get_result("nobody") is None
    assert await queue.get_task("nobody") is None
    assert await queue.cancel("nobody") == Cancelled.UNKNOWN


async def test_waiting_for_a_task_that_was_purged_ends(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sitq.queue._LONG_WAIT", 0.01)
    handle = await queue.options(retention=0).enqueue(double, 1)
    await queue.cancel(handle)
    await queue.backend.purge()
    with pytest.raises(TaskNotFoundError, match="retention"):
        await handle.result()


async def test_cancel_before_the_start(queue: TaskQueue) -> None:
    handle = await queue.enqueue(double, 1)
    assert await queue.cancel(handle) == Cancelled.CANCELLED
    assert await queue.cancel(handle) == Cancelled.FINISHED
    result = await queue.get_result(handle)
    assert result is not None
    assert (result.status, result.reason) == ("failed", "cancelled")


async def test_many_wait_for_one_result(queue: TaskQueue) -> None:
    handle = await queue.enqueue(double, 4)
    waiting = [asyncio.create_task(handle.result(timeout=60)) for _ in range(20)]
    async with Worker(queue):
        assert await asyncio.gather(*waiting) == [8] * 20


async def test_a_foreign_payload_is_a_clear_error(queue: TaskQueue) -> None:
    with pytest.raises(SerializationError, match="no payload of sitq"):
        queue.deserialize_result(Result(task_id="x", payload=b"\x80\x05K\x05."))
    with pytest.raises(SerializationError, match="version 9"):
        queue.deserialize_result(Result(task_id="x", payload=b"sitq\x09p"))


async def test_the_queue_connects_by_itself_and_closes_again(backend: Backend) -> None:
    queue = TaskQueue(backend)
    handle = await queue.enqueue(double, 3)
    await queue.close()
    await queue.close()
    stored = await queue.get_task(handle)
    assert (stored is not None) == (getattr(backend, "path", None) != ":memory:")  # that one lives until it is closed
    await queue.close()


def test_one_queue_in_two_event_loops(backend: Backend) -> None:
    queue = TaskQueue(backend)

    async def produce() -> str:
        handle = await queue.enqueue(double, 5)
        if getattr(backend, "path", None) != ":memory:":  # that one lives until it is closed
            await queue.close()
        return handle

    async def work(task_id: str) -> int:
        async with Worker(queue):
            result = await queue.get_result(task_id, timeout=60)
        await queue.close()
        assert result is not None
        return int(result.value)

    assert asyncio.run(work(asyncio.run(produce()))) == 10
