"""LEASES: a worker that lost its lease can change nothing any more, and a settle answers yes or no."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, Kit, requires
from sitq.core import Held, Outcome, ReservedTask


@requires(Capability.LEASES)
class FencingTests(Kit):
    """Old and new fences."""

    def outcomes(self, backend: Backend, task: ReservedTask) -> dict[str, Outcome]:
        """Return every outcome a worker could hand in for a reservation."""
        return {
            "completed": Outcome.completed(task.id, task.fence, self.success(backend, task.id, "stale")),
            "failed": Outcome.failed(task.id, task.fence, self.failure(task.id)),
            "deferred": Outcome.deferred(task.id, task.fence, 0.0),
            "released": Outcome.released(task.id, task.fence),
        }

    async def taken_over(self, backend: Backend) -> tuple[ReservedTask, ReservedTask]:
        """Return a reservation whose lease has ended, and the one that took it over."""
        span = self.span(backend)
        await self.put_one(backend)
        stale = await self.take_one(backend, self.worker(span))
        await self.let_pass(backend, span)
        return stale, await self.take_soon(backend, self.worker(LONG * 9))

    async def test_fences_strictly_grow(self, backend: Backend) -> None:
        """Each reserve, takeover and operator's write raises the fence; nothing lowers it."""
        span = self.span(backend)
        task_id = await self.put_one(backend)
        fences = []
        for end in ("expire", "released", "deferred", "queued", "completed", "failed", "expire", "unheard", "last"):
            worker = self.worker(span if end == "expire" else LONG)
            task = await self.take_soon(backend, worker)
            assert isinstance(task.fence, int)
            fences.append(task.fence)
            if end == "expire":
                await self.let_pass(backend, span)
            elif end in ("released", "deferred"):
                await backend.settle([self.outcomes(backend, task)[end]])
            elif end in ("queued", "completed", "failed"):
                await backend.update_task_status(task_id, end)
                if end != "queued":
                    await backend.update_task_status(task_id, "queued")
            else:
                await backend.abandon_worker(worker.id)
        assert all(a < b for a, b in pairwise(fences)), fences

    @pytest.mark.parametrize("kind", ["completed", "failed", "deferred", "released"])
    async def test_stale_settle_is_refused(self, backend: Backend, kind: str) -> None:
        """After a takeover the old worker's settle answers False and changes nothing."""
        stale, fresh = await self.taken_over(backend)
        assert await backend.settle([self.outcomes(backend, stale)[kind]]) == [False]
        stored = await self.stored(backend, stale.id)
        assert (stored.status, stored.fence, stored.worker_id) == ("running", fresh.fence, fresh.worker_id)
        assert stored.attempt == fresh.attempt
        assert await backend.get_result(stale.id) is None
        assert await backend.settle([self.outcomes(backend, fresh)["completed"]]) == [True]

    async def test_stale_settle_after_the_end_is_refused(self, backend: Backend) -> None:
        """When the new worker has settled, the old one's settle is refused too, and the result stays."""
        stale, fresh = await self.taken_over(backend)
        good = Outcome.completed(fresh.id, fresh.fence, self.success(backend, fresh.id, "fresh"))
        assert await backend.settle([good]) == [True]
        for outcome in self.outcomes(backend, stale).values():
            assert await backend.settle([outcome]) == [False], outcome.kind
        result = await backend.get_result(fresh.id)
        assert result is not None
        assert result.value == "fresh"

    async def test_stale_heartbeat_is_told(self, backend: Backend) -> None:
        """After a takeover the old worker's heartbeat hears that the lease is lost, and changes nothing."""
        stale, fresh = await self.taken_over(backend)
        answer = await backend.extend_leases(
            self.worker(LONG), [Held(id=stale.id, fence=stale.fence, progress="stale"), Held(id="nobody", fence=1)]
        )
        assert answer.lost == {stale.id, "nobody"}
        stored = await self.stored(backend, stale.id)
        assert (stored.fence, stored.worker_id, stored.progress) == (fresh.fence, fresh.worker_id, None)

    @pytest.mark.parametrize("kind", ["completed", "failed", "deferred", "released"])
    async def test_settle_is_idempotent(self, backend: Backend, kind: str) -> None:
        """The same outcome again answers True and changes nothing."""
        await self.put_one(backend)
        task = await self.take_one(backend)
        outcome = self.outcomes(backend, task)[kind]
        assert await backend.settle([outcome]) == [True]
        before = await self.stored(backend, task.id)
        assert await backend.settle([outcome]) == [True]
        after = await self.stored(backend, task.id)
        assert (after.status, after.attempt, after.fence) == (before.status, before.attempt, before.fence)

    async def test_a_repeat_does_not_touch_the_next_run(self, backend: Backend) -> None:
        """A settle repeated after the task was handed out again is refused."""
        await self.put_one(backend)
        first = await self.take_one(backend)
        outcome = self.outcomes(backend, first)["deferred"]
        assert await backend.settle([outcome]) == [True]
        second = await self.take_one(backend)
        assert await backend.settle([outcome]) == [False]
        stored = await self.stored(backend, first.id)
        assert (stored.status, stored.fence) == ("running", second.fence)

    async def test_each_outcome_has_its_own_answer(self, backend: Backend) -> None:
        """In one batch a stale outcome, an unknown id and a good one are answered apart, in order."""
        stale, fresh = await self.taken_over(backend)
        await self.put_one(backend)
        good = await self.take_one(backend)
        batch = [
            self.outcomes(backend, stale)["failed"],
            Outcome.released("nobody", 1),
            self.outcomes(backend, good)["completed"],
            self.outcomes(backend, fresh)["failed"],
        ]
        assert await backend.settle(batch) == [False, False, True, True]
        assert (await self.stored(backend, good.id)).status == "completed"
        assert (await self.stored(backend, fresh.id)).status == "failed"

    @pytest.mark.parametrize("kind", ["completed", "failed"])
    async def test_settle_stores_status_and_result(self, backend: Backend, kind: str) -> None:
        """An outcome that ends a task sets its status, stores the result and ends the lease."""
        await self.put_one(backend)
        task = await self.take_one(backend)
        assert await backend.settle([self.outcomes(backend, task)[kind]]) == [True]
        stored, result = await self.stored(backend, task.id), await backend.get_result(task.id)
        assert (stored.status, stored.worker_id, stored.lease_expires_at) == (kind, None, None)
        assert result is not None
        assert result.status == ("success" if kind == "completed" else "failed")
        assert stored.reason == (None if kind == "completed" else "error")
        assert await self.take(backend) == []

    async def test_settle_overwrites_a_result_stored_by_hand(self, backend: Backend) -> None:
        """The result that came with a settle replaces an earlier one."""
        await self.put_one(backend)
        task = await self.take_one(backend)
        await backend.store_result(task.id, self.success(backend, task.id, "by hand"))
        await backend.settle([Outcome.completed(task.id, task.fence, self.success(backend, task.id, "settled"))])
        result = await backend.get_result(task.id)
        assert result is not None
        assert result.value == "settled"

    @pytest.mark.parametrize("status", ["queued", "completed", "failed"])
    async def test_operators_write_wins_over_the_worker(self, backend: Backend, status: str) -> None:
        """After `update_task_status` on a running task its worker's settle and heartbeat are refused."""
        await self.put_one(backend)
        worker = self.worker()
        task = await self.take_one(backend, worker)
        await backend.update_task_status(task.id, status)
        for outcome in self.outcomes(backend, task).values():
            assert await backend.settle([outcome]) == [False], outcome.kind
        answer = await backend.extend_leases(worker, [Held(id=task.id, fence=task.fence)])
        assert answer.lost == {task.id}
        assert (await self.stored(backend, task.id)).status == status

    @pytest.mark.parametrize("status", ["completed", "failed"])
    async def test_run_again_by_an_operator(self, backend: Backend, status: str) -> None:
        """A finished task that is queued again starts with attempts and crashes reset, and no result."""
        stale, fresh = await self.taken_over(backend)
        await backend.settle([self.outcomes(backend, fresh)[status]])
        await backend.update_task_status(fresh.id, "queued")
        assert await backend.get_result(fresh.id) is None
        again = await self.take_one(backend)
        assert (again.id, again.attempt, again.crashes) == (stale.id, 1, 0)
        assert again.fence is not None
        assert fresh.fence is not None
        assert again.fence > fresh.fence
        assert await backend.settle([self.outcomes(backend, fresh)[status]]) == [False]
