"""Waiting: who waits for work or for a result is woken by what he waits for. Counted, never timed.

A store that leaves `wait_for_work` and `wait_for_result` to the base class is polled, and has nothing to prove here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, PATIENCE, Kit, requires
from sitq.core import Held, Outcome, ReservedTask, TaskOptions, WorkerInfo, utcnow

_ROUNDS = 100


class WakeUpTests(Kit):
    """Nobody sleeps through it."""

    async def next_task(self, backend: Backend, worker: WorkerInfo) -> ReservedTask:
        """Reserve as a worker does: look, wait without end, look again when woken."""
        async with asyncio.timeout(PATIENCE):
            while not (reserved := await backend.reserve(worker, 1)):
                await backend.wait_for_work(worker, LONG)
        return reserved[0]

    async def woken_by(
        self, backend: Backend, event: Callable[[], Awaitable[object]], worker: WorkerInfo | None = None
    ) -> ReservedTask:
        """Let a worker wait, have something happen, and return the task that the woken worker gets."""
        waiting = asyncio.create_task(self.next_task(backend, worker or self.worker()))
        try:
            await asyncio.sleep(0.05)  # most of the time it waits by now; both orders must work
            assert not waiting.done()
            await event()
            return await waiting
        finally:
            waiting.cancel()

    @requires("wait_for_work")
    async def test_by_enqueue(self, backend: Backend) -> None:
        """A new task wakes a waiting worker."""
        task = await self.woken_by(backend, lambda: self.put(backend))
        assert task.attempt == 1

    @requires("wait_for_work", Capability.QUEUES)
    async def test_by_enqueue_in_its_queue(self, backend: Backend) -> None:
        """A new task in one of its queues wakes a worker."""
        options = TaskOptions(queue="mail")
        task = await self.woken_by(
            backend, lambda: self.put(backend, options=options), self.worker(queues=("a", "mail"))
        )
        assert task.options is not None
        assert task.options.queue == "mail"

    @requires("wait_for_work", Capability.LEASES)
    async def test_by_release(self, backend: Backend) -> None:
        """A task that is given back wakes another worker."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        again = await self.woken_by(backend, lambda: backend.settle([Outcome.released(task_id, task.fence)]))
        assert again.id == task_id

    @requires("wait_for_work", Capability.DEFER)
    async def test_when_a_deferred_task_is_due(self, backend: Backend) -> None:
        """A delay that ends while a worker waits wakes it."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        again = await self.woken_by(backend, lambda: backend.settle([Outcome.deferred(task_id, task.fence, 0.3)]))
        assert again.id == task_id

    @requires("wait_for_work", Capability.DEFER)
    async def test_when_a_scheduled_task_is_due(self, backend: Backend) -> None:
        """A task stored for later wakes a waiting worker when it is due, also when it comes while the worker waits."""
        await self.put_one(backend, eta=utcnow() + timedelta(seconds=LONG))
        eta = utcnow() + timedelta(seconds=0.4)
        task = await self.woken_by(backend, lambda: self.put(backend, eta=eta))
        assert task.eta is not None

    @requires("wait_for_work", Capability.LEASES)
    async def test_when_a_lease_ends(self, backend: Backend) -> None:
        """A lease that ends while a worker waits wakes it."""
        task_id = await self.put_one(backend)
        await self.take_one(backend, self.worker(0.5))
        assert (await self.next_task(backend, self.worker())).id == task_id

    @requires("wait_for_work", Capability.PAUSE)
    async def test_by_resume(self, backend: Backend) -> None:
        """A queue that is resumed wakes the workers that wait for it."""
        task_id = await self.put_one(backend)
        await backend.pause_queue("default", paused=True)
        task = await self.woken_by(backend, lambda: backend.pause_queue("default", paused=False))
        assert task.id == task_id

    @requires("wait_for_work", Capability.LEASES)
    async def test_by_abandon(self, backend: Backend) -> None:
        """The tasks of a worker known to be dead wake another one."""
        dead, task_id = self.worker(), await self.put_one(backend)
        await self.take_one(backend, dead)
        assert (await self.woken_by(backend, lambda: backend.abandon_worker(dead.id))).id == task_id

    @requires("wait_for_work")
    async def test_by_an_operator(self, backend: Backend) -> None:
        """A task that is queued again by hand wakes a worker."""
        task_id = await self.put_one(backend)
        await backend.update_task_status(task_id, "failed")
        task = await self.woken_by(backend, lambda: backend.update_task_status(task_id, "queued"))
        assert task.id == task_id

    @requires("wait_for_work", Capability.LEASES)
    async def test_by_give_back(self, backend: Backend) -> None:
        """An unheard reservation that is given back wakes another worker."""
        lease = max(self.span(backend), 2.0)
        deaf, task_id = self.worker(lease), await self.put_one(backend)
        await self.take_one(backend, deaf)
        await self.let_pass(backend, lease / 2)
        held: list[Held] = []
        task = await self.woken_by(backend, lambda: backend.extend_leases(deaf, held))
        assert task.id == task_id

    @requires("wait_for_work", Capability.TRANSACTION, "transaction")
    async def test_by_commit(self, backend: Backend) -> None:
        """A task that was stored in a transaction wakes a worker once that commits."""

        async def commit() -> None:
            async with self.transaction(backend) as connection:
                await backend.enqueue_in(connection, [self.new(backend)])

        await self.woken_by(backend, commit)

    @requires("wait_for_work")
    async def test_no_wake_up_is_lost(self, backend: Backend) -> None:
        """Of many tasks that each come at another moment of the wait, none is slept through."""
        worker = self.worker()
        for steps in range(_ROUNDS):
            waiting = asyncio.create_task(self.next_task(backend, worker))
            for _ in range(steps % 10):
                await asyncio.sleep(0)
            task_id = await self.put_one(backend)
            assert (await waiting).id == task_id

    @requires("wait_for_work")
    async def test_all_who_wait_find_work(self, backend: Backend) -> None:
        """As many tasks as waiting workers: each of them gets one."""
        waiting = [asyncio.create_task(self.next_task(backend, self.worker())) for _ in range(5)]
        await asyncio.sleep(0.05)
        ids = await self.put(backend, 5)
        assert {task.id for task in await asyncio.gather(*waiting)} == set(ids)

    async def test_waiting_ends_with_its_timeout(self, backend: Backend) -> None:
        """Without work `wait_for_work` returns when its time is over, and does not spin until then."""
        async with asyncio.timeout(PATIENCE):
            returns, until = 0, asyncio.get_running_loop().time() + 0.5
            while (left := until - asyncio.get_running_loop().time()) > 0:
                await backend.wait_for_work(self.worker(), left)
                returns += 1
        assert returns < 50, f"wait_for_work came back {returns} times, with nothing to do"

    async def test_waiting_can_be_cancelled(self, backend: Backend) -> None:
        """A cancelled wait ends as cancelled, and leaves the store in order."""
        waits: list[Callable[[], Awaitable[object]]] = [
            lambda: backend.wait_for_work(self.worker(), LONG),
            lambda: backend.wait_for_result("nobody", LONG),
        ]
        for wait in waits:
            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(0.02)
            waiting.cancel()
            async with asyncio.timeout(PATIENCE):
                (answer,) = await asyncio.gather(waiting, return_exceptions=True)
            assert isinstance(answer, asyncio.CancelledError), f"the cancelled wait returned {answer!r}"
        assert await self.take(backend) == []

    async def test_wait_for_result(self, backend: Backend) -> None:
        """`wait_for_result` returns the result of a task that ends while somebody waits; None when the time is over."""
        task_id = await self.put_one(backend)
        assert await backend.wait_for_result(task_id, 0.0) is None
        assert await backend.wait_for_result("nobody", 0.01) is None
        task = await self.take_one(backend)
        waiting = asyncio.create_task(backend.wait_for_result(task_id, LONG))
        await asyncio.sleep(0.02)
        assert await backend.settle([Outcome.completed(task_id, task.fence, self.success(backend, task_id))]) == [True]
        async with asyncio.timeout(PATIENCE):
            result = await waiting
        assert result is not None
        assert result.status == "success"
        assert await backend.wait_for_result(task_id, 0.0) is not None

    @requires(Capability.CANCEL)
    async def test_wait_for_result_of_a_cancelled_task(self, backend: Backend) -> None:
        """Who waits for a task that is cancelled is told."""
        task_id = await self.put_one(backend)
        waiting = asyncio.create_task(backend.wait_for_result(task_id, LONG))
        await asyncio.sleep(0.02)
        await backend.cancel_tasks([task_id])
        async with asyncio.timeout(PATIENCE):
            result = await waiting
        assert result is not None
        assert result.reason == "cancelled"
