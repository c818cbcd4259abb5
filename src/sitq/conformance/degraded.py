"""What a store lacks: queue and worker do without it, or refuse and say what is missing. Nothing degrades silently."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import Kit, without
from sitq.conformance.calls import Tally, add, flaky, stamp
from sitq.core import Held, Retry
from sitq.exceptions import UnsupportedError
from sitq.queue import TaskQueue
from sitq.worker import Worker


class DegradedTests(Kit):
    """One test for each missing capability."""

    @without(Capability.QUEUES)
    async def test_no_queues_refuses_names(self, backend: Backend) -> None:
        """Without QUEUES, a queue or priority at enqueue and `Worker(queues=…)` are refused; nothing is stored."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            for configured in (queue.options(queue="mail"), queue.options(priority=1)):
                with pytest.raises(UnsupportedError, match="QUEUES"):
                    await configured.enqueue(stamp, key)
            with pytest.raises(UnsupportedError, match="QUEUES"):
                await Worker(queue, queues=["mail"]).run_until_empty()
            with pytest.raises(UnsupportedError, match="QUEUES"):
                await backend.reserve(self.worker(queues=("mail",)), 1)
            await Worker(queue).run_until_empty()
        assert Tally.times(key) == []

    @without(Capability.DEFER)
    async def test_no_defer_retries_in_place(self, backend: Backend) -> None:
        """Without DEFER, a retry waits inside the worker, which keeps the task: it is running all the time."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            retry = Retry(max_attempts=2, base=0.5, cap=0.5)
            handle = await queue.options(retry=retry).enqueue(flaky, key, 1)
            async with Worker(queue, poll_interval=0.05):

                async def failed_once() -> bool:
                    return bool(Tally.times(key))

                await self.eventually(failed_once)
                statuses = set()
                while await queue.get_result(handle) is None:
                    statuses.add((await self.stored(backend, handle)).status)
                    await asyncio.sleep(0.005)
                assert await handle.result(30) == 2
        assert "queued" not in statuses

    @without(Capability.LEASES)
    async def test_no_leases_warns(self, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
        """Without LEASES, a worker says at its start that a killed worker strands its tasks, and works."""
        with caplog.at_level(logging.WARNING, "sitq"):
            async with TaskQueue(backend) as queue:
                handle = await queue.enqueue(add, 1, 2)
                await Worker(queue).run_until_empty()
                assert await handle.result(30) == 3
        assert any("LEASES" in record.getMessage() for record in caplog.records)
        worker = self.worker()
        with pytest.raises(UnsupportedError, match="LEASES"):
            backend.clone()
        with pytest.raises(UnsupportedError, match="LEASES"):
            await backend.extend_leases(worker, [Held(id="x")])
        with pytest.raises(UnsupportedError, match="LEASES"):
            await backend.abandon_worker(worker.id)

    @without(Capability.LEASES)
    async def test_no_leases_requeue_by_hand(self, backend: Backend) -> None:
        """Without LEASES, what a killed worker held runs again once an operator queues it."""
        task_id = await self.put_one(backend)
        await self.take_one(backend)  # by a worker that is never heard of again
        async with TaskQueue(backend) as queue:
            await Worker(queue).run_until_empty()
            assert (await self.stored(backend, task_id)).status == "running"
            await backend.update_task_status(task_id, "queued")
            await Worker(queue).run_until_empty()
            result = await queue.get_result(task_id, timeout=30)
        assert result is not None
        assert result.value == 3

    @without(Capability.ATOMIC)
    async def test_no_atomic_tells_what_is_stored(self, backend: Backend) -> None:
        """Without ATOMIC, many tasks are still stored one by one, and all of them run once."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            handles = await queue.enqueue_many(stamp, [(key,) for _ in range(20)])
            await Worker(queue).run_until_empty()
            assert sorted([await handle.result(30) for handle in handles]) == list(range(1, 21))

    @without(Capability.UNIQUE)
    async def test_no_unique_refuses(self, backend: Backend) -> None:
        """Without UNIQUE, a unique key is refused, and nothing is stored."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            with pytest.raises(UnsupportedError, match="UNIQUE"):
                await queue.options(unique="k").enqueue(stamp, key)
            await Worker(queue).run_until_empty()
        assert Tally.times(key) == []

    @without(Capability.CANCEL)
    async def test_no_cancel_refuses(self, backend: Backend) -> None:
        """Without CANCEL, `queue.cancel` is refused, and the task runs."""
        async with TaskQueue(backend) as queue:
            handle = await queue.enqueue(add, 1, 2)
            with pytest.raises(UnsupportedError, match="CANCEL"):
                await queue.cancel(handle)
            await Worker(queue).run_until_empty()
            assert await handle.result(30) == 3

    @without(Capability.INSPECT)
    async def test_no_inspect_refuses(self, backend: Backend) -> None:
        """Without INSPECT, looking and operating are refused; `run_until_empty` still comes to its end."""
        async with TaskQueue(backend) as queue:
            handles = [await queue.enqueue(add, number) for number in range(3)]
            counts = await Worker(queue).run_until_empty()
            assert counts.completed == len(handles)
        calls: list[Callable[[], Awaitable[object]]] = [
            backend.list_tasks,
            backend.count_tasks,
            backend.list_workers,
            backend.purge,
            lambda: backend.requeue_tasks(["x"]),
        ]
        for call in calls:
            with pytest.raises(UnsupportedError, match="INSPECT"):
                await call()

    @without(Capability.PAUSE)
    async def test_no_pause_refuses(self, backend: Backend) -> None:
        """Without PAUSE, pausing a queue is refused."""
        with pytest.raises(UnsupportedError, match="PAUSE"):
            await backend.pause_queue("default", paused=True)

    @without(Capability.TRANSACTION)
    async def test_no_transaction_refuses(self, backend: Backend) -> None:
        """Without TRANSACTION, `options(connection=…)` is refused, and nothing is stored."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            with pytest.raises(UnsupportedError, match="TRANSACTION"):
                await queue.options(connection=object()).enqueue(stamp, key)
            await Worker(queue).run_until_empty()
        assert Tally.times(key) == []
