"""ATOMIC: a batch is stored whole or not at all; result and status become visible together."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import Kit, requires
from sitq.core import NewTask, Outcome
from sitq.exceptions import SitqError


@requires(Capability.ATOMIC)
class AtomicTests(Kit):
    """What others see in the middle of a write."""

    async def test_a_batch_is_all_or_nothing(self, backend: Backend) -> None:
        """A batch with a task that cannot be stored stores none of the others."""
        bad_payload: Any = object()
        news = [self.new(backend) for _ in range(5)]
        news[2] = NewTask(task=dataclasses.replace(news[2].task, payload=bad_payload))
        try:
            await backend.enqueue_tasks(news)
        except (SitqError, TypeError, ValueError):
            wanted = 0
        else:
            wanted = len(news)  # a store of Python objects takes anything
        found = [task for new in news if (task := await backend.get_task(new.task.id)) is not None]
        assert len(found) == wanted

    async def test_one_bad_batch_does_not_fail_its_neighbours(self, backend: Backend) -> None:
        """Batches handed in at the same moment have answers of their own."""
        bad_payload: Any = object()
        bad = self.new(backend)
        bad = NewTask(task=dataclasses.replace(bad.task, payload=bad_payload))
        good = [self.new(backend) for _ in range(10)]
        batches = [[new] for new in good]
        batches.insert(5, [bad])
        answers = await asyncio.gather(*(backend.enqueue_tasks(batch) for batch in batches), return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(failed) <= 1
        for new in good:
            assert await backend.get_task(new.task.id) is not None

    async def test_an_accepted_batch_is_answered_in_order(self, backend: Backend) -> None:
        """`enqueue_tasks` answers for each task, in order, whether it is new."""
        first, second, third = (self.new(backend) for _ in range(3))
        assert [a.created for a in await backend.enqueue_tasks([second])] == [True]
        answers = await backend.enqueue_tasks([first, second, third, third])
        assert [a.id for a in answers] == [new.task.id for new in (first, second, third, third)]
        assert [a.created for a in answers] == [True, False, True, False]
        assert await backend.enqueue_tasks([]) == []

    async def test_a_batch_is_visible_at_once(self, backend: Backend) -> None:
        """Whoever sees the first task of a batch sees the last one too."""
        batches = [[self.new(backend) for _ in range(50)] for _ in range(10)]
        writing = asyncio.create_task(self._write(backend, batches))
        seen = 0
        for batch in batches:
            while not await backend.get_task(batch[0].task.id):
                await asyncio.sleep(0)
                assert not (writing.done() and writing.exception()), "the batch could not be stored"
            assert await backend.get_task(batch[-1].task.id) is not None
            seen += 1
        await writing
        assert seen == len(batches)

    async def _write(self, backend: Backend, batches: list[list[NewTask]]) -> None:
        for batch in batches:
            await backend.enqueue_tasks(batch)
            await asyncio.sleep(0)

    async def test_result_and_status_are_visible_together(self, backend: Backend) -> None:
        """Whoever sees a task finished sees its result, and whoever sees a result sees the task finished."""
        ids = await self.put(backend, 30)
        reserved = await self.take(backend, count=len(ids))

        async def settle() -> None:
            for task in reserved:
                result = self.success(backend, task.id)
                assert await backend.settle([Outcome.completed(task.id, task.fence, result)]) == [True]
                await asyncio.sleep(0)

        settling = asyncio.create_task(settle())
        for task in reserved:
            while (await self.stored(backend, task.id)).status == "running":
                if await backend.get_result(task.id) is not None:
                    assert (await self.stored(backend, task.id)).status == "completed"
                await asyncio.sleep(0)
                assert not (settling.done() and settling.exception()), "the outcome could not be settled"
            assert await backend.get_result(task.id) is not None
        await settling
