"""QUEUES: named queues and priorities are honoured, and the order of tasks is kept."""

from __future__ import annotations

from datetime import timedelta

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import Kit, requires
from sitq.conformance.calls import add
from sitq.core import TaskOptions, utcnow
from sitq.queue import TaskQueue
from sitq.worker import Worker


@requires(Capability.QUEUES)
class QueuesTests(Kit):
    """Which task comes next."""

    async def test_a_worker_takes_from_its_queues_only(self, backend: Backend) -> None:
        """A worker that names queues is given tasks of those, and no others."""
        mail = await self.put_one(backend, options=TaskOptions(queue="mail"))
        await self.put_one(backend, options=TaskOptions(queue="video"))
        await self.put_one(backend)
        reserved = await self.take(backend, self.worker(queues=("mail", "nobody")), 10)
        assert [task.id for task in reserved] == [mail]

    async def test_a_worker_without_names_takes_from_all(self, backend: Backend) -> None:
        """A worker that names no queues is given tasks of all."""
        ids = [await self.put_one(backend, options=TaskOptions(queue=queue)) for queue in ("a", "b", "default")]
        assert {task.id for task in await self.take(backend, count=10)} == set(ids)

    async def test_six_method_reserve_looks_at_all_queues(self, backend: Backend) -> None:
        """`reserve_task` called by hand looks at all queues."""
        ids = [await self.put_one(backend, options=TaskOptions(queue=queue)) for queue in ("a", "b")]
        assert {task.id for task in await backend.reserve_task("w", 10)} == set(ids)

    async def test_higher_priority_comes_first(self, backend: Backend) -> None:
        """Priority 9 comes before 0, in every queue and across queues."""
        created = utcnow()
        ids = {}
        for priority in (0, 9, 3):
            for queue in ("a", "b"):
                options = TaskOptions(priority=priority, queue=queue)
                ids[await self.put_one(backend, options=options, created_at=created)] = priority
        reserved = [ids[(await self.take_one(backend)).id] for _ in ids]
        assert reserved == [9, 9, 3, 3, 0, 0]

    async def test_one_batch_is_in_order(self, backend: Backend) -> None:
        """A batch comes in the order of single reserves: priority, due time, arrival."""
        created = utcnow()
        wanted: list[str] = []
        for priority in (1, 5):
            ids = await self.put(backend, 3, options=TaskOptions(priority=priority), created_at=created)
            wanted = ids + wanted
        assert [task.id for task in await self.take(backend, count=10)] == wanted

    async def test_due_earlier_comes_first(self, backend: Backend) -> None:
        """At equal priority, what was due earlier comes first, whatever arrived first."""
        old, now = utcnow() - timedelta(hours=2), utcnow()
        late = await self.put_one(backend, created_at=now - timedelta(hours=1))
        early = await self.put_one(backend, created_at=old)
        after = await self.put_one(backend, created_at=old, eta=now - timedelta(minutes=30))
        assert [task.id for task in await self.take(backend, count=10)] == [early, late, after]

    async def test_arrival_breaks_the_tie(self, backend: Backend) -> None:
        """Tasks due at the same moment come in the order they were stored."""
        created = utcnow()
        ids = [await self.put_one(backend, created_at=created) for _ in range(20)]
        assert [(await self.take_one(backend)).id for _ in ids] == ids

    async def test_options_survive(self, backend: Backend) -> None:
        """A reserved task says which queue and priority it came with."""
        await self.put_one(backend, options=TaskOptions(queue="mail", priority=7))
        options = (await self.take_one(backend)).options
        assert options is not None
        assert (options.queue, options.priority) == ("mail", 7)

    async def test_workers_leave_other_queues_alone(self, backend: Backend) -> None:
        """Through queue and worker: `Worker(queues=…)` runs its own and leaves the rest."""
        async with TaskQueue(backend) as queue:
            mine = await queue.options(queue="mine").enqueue(add, 1, 2)
            other = await queue.options(queue="other").enqueue(add, 3, 4)
            await Worker(queue, queues=["mine"]).run_until_empty()
            assert await mine.result(30) == 3
            assert (await self.stored(backend, other)).status == "queued"
            await Worker(queue).run_until_empty()
            assert await other.result(30) == 7
