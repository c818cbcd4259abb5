"""LEASES: reservations expire, are taken over, and are counted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, Kit, renewed, requires
from sitq.core import CRASHED, Held, Outcome, utcnow


@requires(Capability.LEASES)
class LeasesTests(Kit):
    """A worker that is not heard of any more."""

    async def test_a_lease_is_held(self, backend: Backend) -> None:
        """Nobody takes a task whose lease runs."""
        await self.put_one(backend)
        await self.take_one(backend, self.worker(LONG))
        await self.let_pass(backend, self.span(backend))
        assert await self.take(backend) == []

    async def test_an_expired_lease_is_taken_over(self, backend: Backend) -> None:
        """Once its lease has ended, a running task is handed to the next worker that asks."""
        span = self.span(backend)
        task_id = await self.put_one(backend)
        first = await self.take_one(backend, self.worker(span))
        await self.let_pass(backend, span)
        worker = self.worker()
        second = await self.take_soon(backend, worker)
        assert (second.id, second.worker_id) == (task_id, worker.id)
        assert (first.attempt, first.crashes, second.attempt, second.crashes) == (1, 0, 2, 1)
        assert second.solo_crashes == 0
        assert await self.take(backend) == []

    async def test_crashes_add_up(self, backend: Backend) -> None:
        """Each takeover counts one crash; a deferred or released run counts none."""
        span = self.span(backend)
        task_id = await self.put_one(backend)
        seen = []
        for _ in range(3):
            task = await self.take_soon(backend, self.worker(span))
            seen.append((task.attempt, task.crashes))
            await self.let_pass(backend, span)
        task = await self.take_soon(backend)
        await backend.settle([Outcome.deferred(task_id, task.fence, 0.0)])
        task = await self.take_one(backend)
        assert [*seen, (task.attempt, task.crashes)] == [(1, 0), (2, 1), (3, 2), (5, 3)]

    async def test_crashed_child_is_counted(self, backend: Backend) -> None:
        """A task deferred as `CRASHED` has one crash more, and one it was alone for."""
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        assert await backend.settle([Outcome.deferred(task_id, task.fence, 0.0, CRASHED)]) == [True]
        task = await self.take_one(backend)
        assert (task.attempt, task.crashes, task.solo_crashes) == (2, 1, 1)

    async def test_extending_keeps_the_lease(self, backend: Backend) -> None:
        """A lease that was extended ends that much later."""
        span = self.span(backend)
        worker = self.worker(span * 4)
        task_id = await self.put_one(backend)
        task = await self.take_one(backend, worker)
        answer = await backend.extend_leases(renewed(worker, LONG * 9), [Held(id=task_id, fence=task.fence)])
        assert not answer.lost
        assert not answer.cancelled
        await self.let_pass(backend, span * 4)
        assert await self.take(backend) == []
        assert await backend.settle([Outcome.completed(task_id, task.fence, self.success(backend, task_id))]) == [True]

    async def test_an_extended_lease_ends_too(self, backend: Backend) -> None:
        """Extending does not hold a task for ever."""
        span = self.span(backend)
        worker = self.worker(LONG)
        task_id = await self.put_one(backend)
        task = await self.take_one(backend, worker)
        await backend.extend_leases(renewed(worker, span), [Held(id=task_id, fence=task.fence)])
        await self.let_pass(backend, span)
        assert (await self.take_soon(backend)).id == task_id

    async def test_the_lease_can_be_seen(self, backend: Backend) -> None:
        """A running task shows its worker and when its lease ends, in aware UTC; a queued one neither."""
        task_id = await self.put_one(backend)
        worker = self.worker(LONG)
        task = await self.take_one(backend, worker)
        stored = await self.stored(backend, task_id)
        assert stored.worker_id == worker.id
        assert stored.lease_expires_at is not None
        assert stored.lease_expires_at.utcoffset() == timedelta(0)
        assert stored.lease_expires_at > utcnow()
        await backend.settle([Outcome.released(task_id, task.fence)])
        stored = await self.stored(backend, task_id)
        assert (stored.worker_id, stored.lease_expires_at) == (None, None)

    async def test_progress_travels_with_the_heartbeat(self, backend: Backend) -> None:
        """What a task reports is seen in `get_task`; a heartbeat without news leaves it."""
        task_id, worker = await self.put_one(backend), self.worker()
        task = await self.take_one(backend, worker)
        await backend.extend_leases(worker, [Held(id=task_id, fence=task.fence, progress={"done": 3})])
        assert (await self.stored(backend, task_id)).progress == {"done": 3}
        await backend.extend_leases(worker, [Held(id=task_id, fence=task.fence)])
        assert (await self.stored(backend, task_id)).progress == {"done": 3}

    async def test_abandoned_worker_loses_all_at_once(self, backend: Backend) -> None:
        """The leases of a worker known to be dead end now; those of others do not."""
        dead, alive = self.worker(), self.worker()
        ids = await self.put(backend, 3)
        await self.take(backend, dead, 2)
        kept = await self.take_one(backend, alive)
        assert await backend.abandon_worker(dead.id) == 2
        taken = [await self.take_soon(backend) for _ in range(2)]
        assert {task.id for task in taken} == set(ids) - {kept.id}
        assert {task.crashes for task in taken} == {1}
        assert await self.take(backend) == []
        assert await backend.abandon_worker("nobody") == 0

    async def test_running_by_hand_does_not_strand(self, backend: Backend) -> None:
        """`update_task_status(id, "running")` takes a lease under the worker id `operator`, which can be taken over."""
        task_id = await self.put_one(backend)
        await backend.update_task_status(task_id, "running")
        stored = await self.stored(backend, task_id)
        assert stored.worker_id == "operator"
        assert stored.lease_expires_at is not None
        assert await self.take(backend) == []
        if self.claims(backend, "clock"):
            await self.let_pass(backend, LONG)
        else:
            await backend.abandon_worker("operator")
        assert (await self.take_soon(backend)).id == task_id

    async def test_six_method_reserve_takes_a_lease(self, backend: Backend) -> None:
        """What `reserve_task` hands out by hand can be taken over as well."""
        task_id = await self.put_one(backend)
        (task,) = await backend.reserve_task("w")
        assert task.lease_expires_at is not None
        await backend.abandon_worker("w")
        assert (await self.take_soon(backend)).id == task_id

    async def test_unheard_reservations_are_given_back(self, backend: Backend) -> None:
        """What a worker holds by the store, and does not name in its heartbeat, comes back after half a lease."""
        lease = max(self.span(backend), 6.0)
        worker = self.worker(lease)
        heard, unheard = await self.put(backend, 2)
        first = await self.take_one(backend, worker)
        assert first.id == heard
        await self.take_one(backend, worker)  # and the reply was lost
        await self.let_pass(backend, lease / 2)

        async def beat_and_take() -> bool:
            await backend.extend_leases(worker, [Held(id=heard, fence=first.fence)])
            return (await self.stored(backend, unheard)).status == "queued"

        await self.eventually(beat_and_take)
        again = await self.take_one(backend)
        assert (again.id, again.attempt, again.crashes) == (unheard, 1, 0)
        assert (await self.stored(backend, heard)).status == "running"

    async def test_fresh_reservations_are_not_given_back(self, backend: Backend) -> None:
        """A heartbeat that overtakes the reply of a reserve does not give its tasks back."""
        worker = self.worker(LONG)
        task_id = await self.put_one(backend)
        task = await self.take_one(backend, worker)
        await backend.extend_leases(worker, [])
        assert await self.take(backend) == []
        assert await backend.settle([Outcome.completed(task_id, task.fence, self.success(backend, task_id))]) == [True]

    async def test_a_clone_works_in_another_thread(self, backend: Backend) -> None:
        """`clone()` is a handle on the same store for another thread's event loop; closing it leaves the store open."""
        task_id, worker = await self.put_one(backend), self.worker(LONG)
        task = await self.take_one(backend, worker)

        async def beat(handle: Backend) -> bool:
            async with handle:
                answer = await handle.extend_leases(worker, [Held(id=task_id, fence=task.fence, progress=1)])
                return not answer.lost and await handle.get_task(task_id) is not None

        clone = backend.clone()
        assert clone.capabilities == backend.capabilities
        assert await asyncio.to_thread(lambda: asyncio.run(beat(clone)))
        assert (await self.stored(backend, task_id)).progress == 1

    async def test_cancelled_reserve_strands_nothing(self, backend: Backend) -> None:
        """A reserve that is cancelled at any point leaves its task reservable again, within one lease."""
        worker = self.worker(max(self.span(backend), 1.0))
        for steps in range(12):
            task_id = await self.put_one(backend)
            asking = asyncio.create_task(backend.reserve(worker, 1))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            (answer,) = await asyncio.gather(asking, return_exceptions=True)
            if isinstance(answer, BaseException):
                reserved = await self.take(backend)
                if not reserved:  # not given back at once: then its lease ends
                    await self.let_pass(backend, worker.lease)
                    reserved = [await self.take_soon(backend)]
            else:
                reserved = answer
            assert [task.id for task in reserved] == [task_id]
            outcome = Outcome.completed(task_id, reserved[0].fence, self.success(backend, task_id))
            assert await backend.settle([outcome]) == [True]
