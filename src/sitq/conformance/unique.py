"""UNIQUE: one live task per key, and `unique_for` holds the key past the task's end."""

from __future__ import annotations

import asyncio

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, Kit, requires
from sitq.conformance.calls import add
from sitq.core import Accepted, Outcome, TaskFilter, TaskOptions
from sitq.exceptions import InvalidTransitionError
from sitq.queue import TaskQueue
from sitq.worker import Worker


@requires(Capability.UNIQUE)
class UniqueTests(Kit):
    """Who holds a key."""

    async def put_key(self, backend: Backend, key: str = "k", **options: float) -> Accepted:
        """Store a task under a unique key; return the store's answer."""
        new = self.new(backend, options=TaskOptions(unique=key, **options))  # type: ignore[arg-type]
        return (await backend.enqueue_tasks([new]))[0]

    async def test_second_task_is_refused(self, backend: Backend) -> None:
        """A second task under a held key is not stored; the answer is the id of the first."""
        first = await self.put_key(backend)
        new = self.new(backend, options=TaskOptions(unique="k"))
        (second,) = await backend.enqueue_tasks([new])
        assert (first.created, second.created, second.id) == (True, False, first.id)
        assert await backend.get_task(new.task.id) is None
        assert (await self.put_key(backend, "other")).created

    async def test_key_is_held_while_it_runs_and_waits(self, backend: Backend) -> None:
        """A running or deferred task holds its key."""
        first = await self.put_key(backend)
        task = await self.take_one(backend)
        assert not (await self.put_key(backend)).created
        await backend.settle([Outcome.deferred(first.id, task.fence, LONG)])
        assert not (await self.put_key(backend)).created

    @pytest.mark.parametrize("kind", ["completed", "failed"])
    async def test_key_is_free_after_the_end(self, backend: Backend, kind: str) -> None:
        """A finished task lets go of its key."""
        first = await self.put_key(backend)
        task = await self.take_one(backend)
        result = self.success(backend, first.id) if kind == "completed" else self.failure(first.id)
        await backend.settle([getattr(Outcome, kind)(first.id, task.fence, result)])
        assert (await self.put_key(backend)).created

    async def test_unique_for_holds_past_the_end(self, backend: Backend) -> None:
        """With `unique_for` the key stays taken after the task's end."""
        first = await self.put_key(backend, unique_for=LONG)
        task = await self.take_one(backend)
        await backend.settle([Outcome.completed(first.id, task.fence, self.success(backend, first.id))])
        second = await self.put_key(backend)
        assert (second.created, second.id) == (False, first.id)

    async def test_unique_for_ends(self, backend: Backend) -> None:
        """When `unique_for` has passed, a finished task's key is free."""
        span = self.span(backend)
        first = await self.put_key(backend, unique_for=span)
        task = await self.take_one(backend)
        await backend.settle([Outcome.completed(first.id, task.fence, self.success(backend, first.id))])
        await self.let_pass(backend, span)

        async def put_again() -> bool:
            return (await self.put_key(backend)).created

        await self.eventually(put_again)

    async def test_unique_for_does_not_end_a_live_task(self, backend: Backend) -> None:
        """When `unique_for` has passed and the task still waits, the key is held."""
        span = self.span(backend)
        await self.put_key(backend, unique_for=span)
        await self.let_pass(backend, span)
        assert not (await self.put_key(backend)).created

    async def test_same_key_in_one_batch(self, backend: Backend) -> None:
        """Of two tasks with one key in one batch, the first is stored."""
        news = [self.new(backend, options=TaskOptions(unique="k")) for _ in range(2)]
        answers = await backend.enqueue_tasks(news)
        assert [a.created for a in answers] == [True, False]
        assert {a.id for a in answers} == {news[0].task.id}

    async def test_same_id_again_is_itself(self, backend: Backend) -> None:
        """Storing the same task again is no conflict with itself."""
        new = self.new(backend, options=TaskOptions(unique="k"))
        await backend.enqueue_tasks([new])
        (answer,) = await backend.enqueue_tasks([new])
        assert (answer.id, answer.created) == (new.task.id, False)

    async def test_one_of_many_at_once(self, backend: Backend) -> None:
        """Of many tasks that come with one key at the same moment, exactly one is stored."""
        answers = await asyncio.gather(*(self.put_key(backend) for _ in range(20)))
        assert [a.created for a in answers].count(True) == 1
        assert len({a.id for a in answers}) == 1
        assert len(await self.take(backend, count=20)) == 1

    async def test_running_again_needs_the_key(self, backend: Backend) -> None:
        """A finished task whose key is held by another cannot be queued again."""
        first = await self.put_key(backend)
        await backend.update_task_status(first.id, "failed")
        second = await self.put_key(backend)
        assert second.created
        with pytest.raises(InvalidTransitionError):
            await backend.update_task_status(first.id, "queued")
        await backend.update_task_status(second.id, "completed")
        await backend.update_task_status(first.id, "queued")
        answer = await self.put_key(backend)
        assert (answer.created, answer.id) == (False, first.id)

    @requires(Capability.INSPECT)
    async def test_requeue_needs_the_key(self, backend: Backend) -> None:
        """`requeue_tasks` answers False for a task whose key another one holds."""
        first = await self.put_key(backend)
        await backend.update_task_status(first.id, "failed")
        await self.put_key(backend)
        assert await backend.requeue_tasks([first.id]) == [False]
        assert (await self.stored(backend, first.id)).status == "failed"

    @requires(Capability.CANCEL)
    async def test_cancelled_task_frees_its_key(self, backend: Backend) -> None:
        """A task that was cancelled lets go of its key."""
        first = await self.put_key(backend)
        await backend.cancel_tasks([first.id])
        assert (await self.put_key(backend)).created

    @requires(Capability.INSPECT)
    async def test_purge_frees_the_key(self, backend: Backend) -> None:
        """A purged task holds nothing."""
        first = await self.put_key(backend, unique_for=LONG)
        await backend.update_task_status(first.id, "failed")
        assert not (await self.put_key(backend)).created
        assert await backend.purge(TaskFilter()) == 1
        assert (await self.put_key(backend)).created

    @requires(Capability.INSPECT)
    async def test_retention_does_not_shorten_unique_for(self, backend: Backend) -> None:
        """Housekeeping keeps a finished task for as long as it holds its key."""
        await self.put_key(backend, retention=0.0, unique_for=LONG)
        task = await self.take_one(backend)
        await backend.settle([Outcome.completed(task.id, task.fence, self.success(backend, task.id))])
        await self.let_pass(backend, self.span(backend))
        await backend.purge()
        assert not (await self.put_key(backend)).created

    async def test_through_the_queue(self, backend: Backend) -> None:
        """The second handle has the first one's id and says so; after the end a new task is made."""
        async with TaskQueue(backend) as queue:
            first = await queue.options(unique="report").enqueue(add, 1, 2)
            second = await queue.options(unique="report").enqueue(add, 3, 4)
            assert (first.created, second.created, str(second)) == (True, False, str(first))
            await Worker(queue).run_until_empty()
            assert await second.result(30) == 3
            assert (await queue.options(unique="report").enqueue(add, 5, 6)).created
