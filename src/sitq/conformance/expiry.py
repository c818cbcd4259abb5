"""INSPECT: an expired task reads as failed(expired), even where no worker is alive to say so."""

from __future__ import annotations

from datetime import timedelta

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, Kit, requires
from sitq.core import Outcome, Task, TaskFilter, TaskOptions, utcnow


@requires(Capability.INSPECT)
class ExpiryTests(Kit):
    """Work that is no longer wanted."""

    async def put_expiring(self, backend: Backend, seconds: float, **fields: object) -> str:
        """Store a task that expires in so many seconds."""
        options = TaskOptions(expires_at=utcnow() + timedelta(seconds=seconds))
        return await self.put_one(backend, options=options, **fields)

    async def expired(self, backend: Backend, task_id: str) -> Task:
        """Wait until the task reads as ended; return it."""

        async def ended() -> Task | None:
            task = await self.stored(backend, task_id)
            return task if task.status == "failed" else None

        task = await self.eventually(ended)
        assert task is not None
        return task

    async def test_it_reads_as_failed(self, backend: Backend) -> None:
        """`get_task`, `get_result` and lists say failed(expired) without any worker."""
        span = self.span(backend)
        task_id = await self.put_expiring(backend, span)
        await self.let_pass(backend, span)
        assert (await self.expired(backend, task_id)).reason == "expired"
        result = await backend.get_result(task_id)
        assert result is not None
        assert (result.status, result.reason) == ("failed", "expired")
        assert [task.id for task in await backend.list_tasks(TaskFilter(phase="expired"))] == [task_id]

    async def test_it_is_not_handed_out(self, backend: Backend) -> None:
        """An expired task is never reserved."""
        await self.put_expiring(backend, -1.0)
        assert await self.take(backend) == []

    async def test_before_that_it_is_handed_out(self, backend: Backend) -> None:
        """A task that has not expired yet is reserved like any other."""
        task_id = await self.put_expiring(backend, LONG)
        assert (await self.take_one(backend)).id == task_id

    async def test_a_started_task_does_not_expire(self, backend: Backend) -> None:
        """Expiry is about starting: a running task goes on and may complete."""
        span = max(self.span(backend), 2.0)
        task_id = await self.put_expiring(backend, span)
        task = await self.take_one(backend, self.worker(LONG))
        await self.let_pass(backend, span)
        assert (await self.stored(backend, task_id)).status == "running"
        assert await backend.settle([Outcome.completed(task_id, task.fence, self.success(backend, task_id))]) == [True]

    @requires("wait_for_result")
    async def test_whoever_waits_hears_of_it(self, backend: Backend) -> None:
        """`wait_for_result` returns the failure when the task expires."""
        task_id = await self.put_expiring(backend, 0.2)
        result = await backend.wait_for_result(task_id, 30.0)
        assert result is not None
        assert result.reason == "expired"
