"""PAUSE: a queue can be stopped and resumed."""

from __future__ import annotations

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import Kit, requires
from sitq.core import Outcome, TaskOptions


@requires(Capability.PAUSE)
class PauseTests(Kit):
    """Queues that hand out nothing."""

    async def test_a_paused_queue_hands_out_nothing(self, backend: Backend) -> None:
        """Its tasks wait, those of other queues do not; resumed, they are handed out."""
        mail = await self.put_one(backend, options=TaskOptions(queue="mail", priority=9))
        other = await self.put_one(backend)
        await backend.pause_queue("mail", paused=True)
        assert [task.id for task in await self.take(backend, count=5)] == [other]
        assert await self.take(backend, self.worker(queues=("mail",))) == []
        assert await backend.reserve_task("w") == []
        await backend.pause_queue("mail", paused=False)
        assert (await self.take_one(backend)).id == mail

    async def test_a_paused_queue_takes_tasks(self, backend: Backend) -> None:
        """A queue may be paused before it has tasks, and accepts new ones."""
        await backend.pause_queue("mail", paused=True)
        task_id = await self.put_one(backend, options=TaskOptions(queue="mail"))
        assert await self.take(backend) == []
        await backend.pause_queue("mail", paused=False)
        assert (await self.take_one(backend)).id == task_id

    async def test_running_tasks_are_left_alone(self, backend: Backend) -> None:
        """What runs when its queue is paused may settle."""
        await self.put_one(backend)
        task = await self.take_one(backend)
        await backend.pause_queue("default", paused=True)
        assert (await self.stored(backend, task.id)).status == "running"
        assert await backend.settle([Outcome.completed(task.id, task.fence, self.success(backend, task.id))]) == [True]

    @requires(Capability.LEASES)
    async def test_takeover_waits_too(self, backend: Backend) -> None:
        """A lost lease in a paused queue is not taken over until it is resumed."""
        span = self.span(backend)
        task_id = await self.put_one(backend)
        await self.take_one(backend, self.worker(span))
        await backend.pause_queue("default", paused=True)
        await self.let_pass(backend, span)
        assert await self.take(backend) == []
        await backend.pause_queue("default", paused=False)
        assert (await self.take_soon(backend)).id == task_id

    async def test_pausing_again_is_harmless(self, backend: Backend) -> None:
        """Pausing and resuming are not counted."""
        task_id = await self.put_one(backend)
        for paused in (True, True, False):
            await backend.pause_queue("default", paused=paused)
        await backend.pause_queue("nobody", paused=False)
        assert (await self.take_one(backend)).id == task_id

    @requires(Capability.INSPECT)
    async def test_counts_show_it(self, backend: Backend) -> None:
        """`count_tasks` shows paused queues, empty ones too."""
        await self.put_one(backend)
        await backend.pause_queue("empty", paused=True)
        await backend.pause_queue("default", paused=True)
        counts = {counts.queue: (counts.paused, sum(counts.phases.values())) for counts in await backend.count_tasks()}
        assert counts == {"default": (True, 1), "empty": (True, 0)}
        await backend.pause_queue("default", paused=False)
        assert not {c.queue: c for c in await backend.count_tasks()}["default"].paused
