"""CANCEL: a queued task ends at once, a running one is asked to stop."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, Kit, requires
from sitq.conformance.calls import Tally, wait_long
from sitq.core import Cancelled, Held, Outcome, utcnow
from sitq.queue import TaskQueue
from sitq.worker import Worker


@requires(Capability.CANCEL)
class CancelTests(Kit):
    """Requests to stop."""

    async def assert_cancelled(self, backend: Backend, task_id: str) -> None:
        """The task is failed(cancelled), with a result that says so, and is not handed out."""
        stored, result = await self.stored(backend, task_id), await backend.get_result(task_id)
        assert (stored.status, stored.reason) == ("failed", "cancelled")
        assert result is not None
        assert (result.status, result.reason) == ("failed", "cancelled")
        assert await self.take(backend) == []

    async def test_queued_task_ends_at_once(self, backend: Backend) -> None:
        """A queued task becomes failed(cancelled)."""
        task_id = await self.put_one(backend)
        assert await backend.cancel_tasks([task_id]) == [Cancelled.CANCELLED]
        await self.assert_cancelled(backend, task_id)

    async def test_scheduled_task_ends_at_once(self, backend: Backend) -> None:
        """A task that waits for its time becomes failed(cancelled)."""
        task_id = await self.put_one(backend, eta=utcnow() + timedelta(seconds=LONG))
        assert await backend.cancel_tasks([task_id]) == [Cancelled.CANCELLED]
        await self.assert_cancelled(backend, task_id)

    async def test_running_task_is_asked(self, backend: Backend) -> None:
        """A running task goes on; it shows the request."""
        task_id = await self.put_one(backend)
        await self.take_one(backend)
        assert await backend.cancel_tasks([task_id]) == [Cancelled.REQUESTED]
        stored = await self.stored(backend, task_id)
        assert (stored.status, stored.cancel_requested) == ("running", True)

    @requires(Capability.LEASES)
    async def test_heartbeat_hears_of_it(self, backend: Backend) -> None:
        """The worker's heartbeat is told which of its tasks should stop."""
        worker = self.worker()
        ids = await self.put(backend, 2)
        reserved = await self.take(backend, worker, 2)
        held = [Held(id=task.id, fence=task.fence) for task in reserved]
        await backend.cancel_tasks(ids[:1])
        for _ in range(2):
            answer = await backend.extend_leases(worker, held)
            assert answer.cancelled == {ids[0]}
            assert not answer.lost

    @pytest.mark.parametrize("status", ["completed", "failed"])
    async def test_finished_task_stays(self, backend: Backend, status: str) -> None:
        """A finished task is left as it is."""
        task_id = await self.put_one(backend)
        await backend.update_task_status(task_id, status)
        assert await backend.cancel_tasks([task_id]) == [Cancelled.FINISHED]
        stored = await self.stored(backend, task_id)
        assert (stored.status, stored.reason) == (status, None)

    async def test_answers_come_in_order(self, backend: Backend) -> None:
        """Each id has its own answer, unknown ones too."""
        running, queued, finished = await self.put(backend, 3)
        reserved = await self.take_one(backend)
        assert reserved.id == running
        await backend.update_task_status(finished, "completed")
        answers = await backend.cancel_tasks([queued, "nobody", running, finished, queued])
        assert answers == [
            Cancelled.CANCELLED, Cancelled.UNKNOWN, Cancelled.REQUESTED, Cancelled.FINISHED, Cancelled.FINISHED,
        ]  # fmt: skip

    async def test_first_settle_wins(self, backend: Backend) -> None:
        """A task that completes in spite of the request is completed."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        await backend.cancel_tasks([task_id])
        assert await backend.settle([Outcome.completed(task_id, task.fence, self.success(backend, task_id))]) == [True]
        assert (await self.stored(backend, task_id)).status == "completed"

    @requires(Capability.LEASES)
    @pytest.mark.parametrize("kind", ["deferred", "released"])
    async def test_sent_back_becomes_cancelled(self, backend: Backend, kind: str) -> None:
        """A task that was asked to stop does not wait for another run: it ends as cancelled."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        await backend.cancel_tasks([task_id])
        assert await backend.settle([getattr(Outcome, kind)(task_id, task.fence, 0.0)]) == [True]
        await self.assert_cancelled(backend, task_id)

    @requires(Capability.LEASES)
    async def test_takeover_settles_it(self, backend: Backend) -> None:
        """When the worker that was asked dies, the task ends as cancelled and is not run again."""
        span = self.span(backend)
        task_id = await self.put_one(backend)
        await self.take_one(backend, self.worker(span))
        await backend.cancel_tasks([task_id])
        await self.let_pass(backend, span)

        async def ended() -> bool:
            assert await self.take(backend) == []
            return (await self.stored(backend, task_id)).status == "failed"

        await self.eventually(ended)
        await self.assert_cancelled(backend, task_id)

    @requires(Capability.LEASES)
    async def test_given_back_becomes_cancelled(self, backend: Backend) -> None:
        """An unheard reservation that was asked to stop ends as cancelled when it is given back."""
        lease = max(self.span(backend), 6.0)
        worker, task_id = self.worker(lease), await self.put_one(backend)
        await self.take_one(backend, worker)
        await backend.cancel_tasks([task_id])
        await self.let_pass(backend, lease / 2)

        async def ended() -> bool:
            await backend.extend_leases(worker, [])
            return (await self.stored(backend, task_id)).status != "running"

        await self.eventually(ended)
        await self.assert_cancelled(backend, task_id)

    async def test_an_operator_may_run_it_again(self, backend: Backend) -> None:
        """A cancelled task that is queued again runs, and nobody remembers the request."""
        task_id = await self.put_one(backend)
        await backend.cancel_tasks([task_id])
        await backend.update_task_status(task_id, "queued")
        task = await self.take_one(backend)
        assert not task.cancel_requested
        assert await backend.settle([Outcome.deferred(task_id, task.fence, 0.0)]) == [True]
        assert (await self.stored(backend, task_id)).status == "queued"

    @requires(Capability.DEFER)
    async def test_run_again_it_is_due_now(self, backend: Backend) -> None:
        """A task that was cancelled before its time and is queued again is due at once."""
        task_id = await self.put_one(backend, eta=utcnow() + timedelta(seconds=LONG))
        await backend.cancel_tasks([task_id])
        await backend.update_task_status(task_id, "queued")
        task = await self.take_one(backend)
        assert task.id == task_id
        assert task.eta is None or task.eta < utcnow() + timedelta(seconds=LONG / 2)

    @requires(Capability.LEASES)
    async def test_a_worker_stops_it(self, backend: Backend) -> None:
        """Through queue and worker: the running function is stopped and the task ends as cancelled."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue, Worker(queue, lease=3.0, poll_interval=0.05):
            handle = await queue.enqueue(wait_long, key)

            async def started() -> bool:
                return bool(Tally.times(key))

            await self.eventually(started)
            assert await queue.cancel(handle) == Cancelled.REQUESTED
            result = await queue.get_result(handle, timeout=30)
            assert result is not None
            assert (result.status, result.reason) == ("failed", "cancelled")
