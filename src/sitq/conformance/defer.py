"""DEFER: "again after a delay" is remembered by the store, and outlives the worker that asked for it."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, Kit, requires
from sitq.conformance.calls import flaky
from sitq.core import Outcome, Retry, utcnow
from sitq.queue import TaskQueue
from sitq.worker import Worker


@requires(Capability.DEFER)
class DeferTests(Kit):
    """Outcomes that send a task back."""

    async def test_not_reserved_before_its_eta(self, backend: Backend) -> None:
        """A store that remembers delays holds back a task until its `eta`."""
        await self.put_one(backend, eta=utcnow() + timedelta(seconds=LONG))
        assert await self.take(backend) == []

    @requires("clock")
    async def test_reserved_once_its_eta_has_come(self, backend: Backend) -> None:
        """A task that was stored for later is handed out when its time has come."""
        task_id = await self.put_one(backend, eta=utcnow() + timedelta(seconds=LONG))
        await self.let_pass(backend, LONG + 1)
        assert (await self.take_one(backend)).id == task_id

    @pytest.mark.parametrize("kind", ["deferred", "released"])
    async def test_not_handed_out_before_the_delay(self, backend: Backend, kind: str) -> None:
        """A task that was sent back with a delay is queued, and nobody gets it before."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        assert await backend.settle([getattr(Outcome, kind)(task_id, task.fence, LONG, "later")]) == [True]
        stored = await self.stored(backend, task_id)
        assert (stored.status, stored.reason) == ("queued", "later")
        assert stored.eta is not None
        assert stored.eta > utcnow()
        assert await self.take(backend) == []

    @pytest.mark.parametrize("kind", ["deferred", "released"])
    async def test_handed_out_after_the_delay(self, backend: Backend, kind: str) -> None:
        """Once the delay has passed by the store's clock, the task is reservable."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        await backend.settle([getattr(Outcome, kind)(task_id, task.fence, self.span(backend))])
        await self.let_pass(backend, self.span(backend))
        assert (await self.take_soon(backend)).id == task_id

    async def test_a_reason_of_any_text_is_kept(self, backend: Backend) -> None:
        """Why a task was sent back may hold half a surrogate pair or a NUL."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        assert await backend.settle([Outcome.deferred(task_id, task.fence, LONG, "no caf\udce9 \0 yet")]) == [True]
        reason = (await self.stored(backend, task_id)).reason
        assert reason is not None
        assert reason.startswith("no caf")
        assert reason.endswith(" yet")

    @pytest.mark.parametrize("status", ["completed", "failed"])
    async def test_a_reason_ends_with_what_it_was_for(self, backend: Backend, status: str) -> None:
        """A task that waits for its next attempt and is ended by hand has not ended for the reason it waited for."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        await backend.settle([Outcome.deferred(task_id, task.fence, LONG, "retry after ValueError")])
        await backend.update_task_status(task_id, status)
        stored = await self.stored(backend, task_id)
        assert (stored.status, stored.reason) == (status, None)

    async def test_deferred_keeps_the_attempt(self, backend: Backend) -> None:
        """A deferred attempt has counted: the next one has the next number."""
        task_id = await self.put_one(backend)
        attempts = []
        for _ in range(3):
            task = await self.take_one(backend)
            attempts.append(task.attempt)
            assert await backend.settle([Outcome.deferred(task_id, task.fence, 0.0)]) == [True]
        assert attempts == [1, 2, 3]

    async def test_released_restores_the_attempt(self, backend: Backend) -> None:
        """A given-back attempt has not counted: the next one has the same number."""
        task_id = await self.put_one(backend)
        attempts = []
        for _ in range(3):
            task = await self.take_one(backend)
            attempts.append(task.attempt)
            assert await backend.settle([Outcome.released(task_id, task.fence)]) == [True]
        assert attempts == [1, 1, 1]

    async def test_delay_counts_by_the_stores_clock(self, backend: Backend) -> None:
        """`Outcome.delay` counts from the settle: what was reserved long ago waits as long as what was reserved now."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        if self.claims(backend, "clock"):
            await self.let_pass(backend, LONG / 2)
        assert await backend.settle([Outcome.deferred(task_id, task.fence, LONG / 4)]) == [True]
        assert await self.take(backend) == []
        if self.claims(backend, "clock"):
            await self.let_pass(backend, LONG / 4 + 1)
            assert (await self.take_one(backend)).id == task_id

    async def test_a_retry_outlives_its_worker(self, backend: Backend) -> None:
        """Through queue and worker: the second attempt is made by another worker."""
        key = uuid4().hex
        async with TaskQueue(backend) as queue:
            retry = Retry(max_attempts=2, base=0.2, cap=0.2)
            handle = await queue.options(retry=retry).enqueue(flaky, key, 1)
            async with Worker(queue, poll_interval=0.05):
                await self.eventually(lambda: self._is_waiting(backend, handle))
            async with Worker(queue, poll_interval=0.05):
                assert await handle.result(30) == 2

    async def _is_waiting(self, backend: Backend, task_id: str) -> bool:
        task = await self.stored(backend, task_id)
        return task.status != "running" and task.attempt > 0
