"""Through queue and worker: what a user sees works on every store, whatever it can do by itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from uuid import uuid4

from sitq.backends.base import Backend
from sitq.conformance._kit import Kit
from sitq.conformance.calls import Tally, add, defer_once, fail, flaky, stamp, wait_long
from sitq.core import Retry, utcnow
from sitq.queue import TaskQueue
from sitq.worker import Worker


class WorkingTests(Kit):
    """The main job."""

    async def test_results(self, backend: Backend) -> None:
        """Plain functions, coroutines and lambdas run, and their values come back."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            plain = await queue.enqueue(add, 2, b=3)
            coroutine = await queue.enqueue(stamp, key)
            inline = await queue.enqueue(lambda text: text.upper(), "ü")
            counts = await Worker(queue).run_until_empty()
            assert (await plain.result(30), await coroutine.result(30), await inline.result(30)) == (5, 1, "Ü")
            assert (counts.completed, counts.failed) == (3, 0)
            assert (await self.stored(backend, plain)).status == "completed"

    async def test_failures(self, backend: Backend) -> None:
        """A failure is stored with its error, traceback and reason."""
        async with TaskQueue(backend) as queue:
            handle = await queue.enqueue(fail, "on purpose")
            await Worker(queue).run_until_empty()
            result = await queue.get_result(handle)
            assert result is not None
            assert (result.status, result.error, result.reason) == ("failed", "RuntimeError: on purpose", "error")
            assert "RuntimeError: on purpose" in (result.traceback or "")
            assert (await self.stored(backend, handle)).status == "failed"

    async def test_result_is_there_when_the_task_has_ended(self, backend: Backend) -> None:
        """Whoever sees a task completed finds its result."""
        async with TaskQueue(backend) as queue, Worker(queue, poll_interval=0.05):
            for number in range(10):
                handle = await queue.enqueue(add, number)
                await self.eventually(partial(self.completed, backend, handle))
                assert await backend.get_result(handle) is not None

    async def completed(self, backend: Backend, task_id: str) -> bool:
        """Say whether a task has completed."""
        return (await self.stored(backend, task_id)).status == "completed"

    async def test_never_before_eta(self, backend: Backend) -> None:
        """A task with an `eta` does not start before it, and starts without another push."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue, Worker(queue, poll_interval=0.05):
            eta = utcnow() + timedelta(seconds=0.4)
            late = await queue.enqueue(stamp, key, eta=eta)
            soon = await queue.enqueue(add, 1, 2)
            assert await soon.result(30) == 3
            assert await late.result(30) == 1
        (ran,) = Tally.times(key)
        assert ran >= eta.timestamp()

    async def test_retries(self, backend: Backend) -> None:
        """A task with retries runs until it succeeds, and its result counts the attempts."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            retry = Retry(max_attempts=4, base=0.01, cap=0.02)
            handle = await queue.options(retry=retry).enqueue(flaky, key, 2)
            async with Worker(queue, poll_interval=0.05):
                result = await queue.get_result(handle, timeout=30)
        assert result is not None
        assert (result.value, result.attempts) == (3, 3)
        assert len(Tally.times(key)) == 3

    async def test_defer_costs_no_attempt(self, backend: Backend) -> None:
        """`raise Defer(seconds)` runs the task again, as the same attempt."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            handle = await queue.enqueue(defer_once, key, 0.02)
            async with Worker(queue, poll_interval=0.05):
                result = await queue.get_result(handle, timeout=30)
        assert result is not None
        assert (result.value, result.attempts) == (2, 1)

    async def test_an_expired_task_does_not_run(self, backend: Backend) -> None:
        """A task whose time is over ends as failed(expired) and is not run."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            handle = await queue.options(expires=utcnow() - timedelta(seconds=1)).enqueue(stamp, key)
            await Worker(queue).run_until_empty()
            result = await queue.get_result(handle)
        assert result is not None
        assert (result.status, result.reason) == ("failed", "expired")
        assert Tally.times(key) == []

    async def test_release_at_shutdown(self, backend: Backend) -> None:
        """A worker that stops gives back what it has not finished; another one finishes it."""
        key, slow = uuid4().hex, uuid4().hex
        async with TaskQueue(backend) as queue:
            stuck = await queue.enqueue(wait_long, slow)
            handles = [await queue.enqueue(stamp, key) for _ in range(5)]
            async with Worker(queue, max_concurrency=1, grace=0.0, poll_interval=0.05):

                async def started() -> bool:
                    return bool(Tally.times(slow)) or len(Tally.times(key)) == 5

                await self.eventually(started)
            for handle in (stuck, *handles):
                assert (await self.stored(backend, handle)).status in ("queued", "completed")
            async with Worker(queue, grace=0.0, poll_interval=0.05):
                values = [await handle.result(30) for handle in handles]
        assert sorted(values) == [1, 2, 3, 4, 5]
        assert len(Tally.times(key)) == 5

    async def test_many_workers_share(self, backend: Backend) -> None:
        """Several workers on one queue run every task once."""
        keys = [uuid4().hex for _ in range(60)]
        async with TaskQueue(backend) as queue:
            handles = await queue.enqueue_many(stamp, [(key,) for key in keys])
            await asyncio.gather(
                *(Worker(queue, max_concurrency=3, poll_interval=0.05).run_until_empty() for _ in range(3))
            )
            assert [await handle.result(30) for handle in handles] == [1] * len(keys)
        assert [len(Tally.times(key)) for key in keys] == [1] * len(keys)
