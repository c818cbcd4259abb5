"""TRANSACTION: tasks are stored inside the caller's own transaction, and share its fate."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import Kit, requires
from sitq.conformance.calls import add
from sitq.core import Accepted, NewTask, TaskOptions
from sitq.exceptions import SitqError
from sitq.queue import TaskHandle, TaskQueue
from sitq.worker import Worker


class _RollbackError(Exception):
    """What ends a transaction badly."""


@requires(Capability.TRANSACTION, "transaction")
class TransactionTests(Kit):
    """Commit and rollback."""

    async def rolled_back(self, backend: Backend, new: NewTask) -> list[Accepted]:
        """Store a task in a transaction that is rolled back."""
        answers: list[Accepted] = []
        with suppress(_RollbackError):
            async with self.transaction(backend) as connection:
                answers = await backend.enqueue_in(connection, [new])
                raise _RollbackError
        return answers

    async def test_stored_at_commit(self, backend: Backend) -> None:
        """What is stored in a transaction is handed out once that has committed."""
        new = self.new(backend)
        async with self.transaction(backend) as connection:
            (answer,) = await backend.enqueue_in(connection, [new])
            assert (answer.id, answer.created) == (new.task.id, True)
        assert (await self.take_one(backend)).id == new.task.id

    async def test_not_seen_before_commit(self, backend: Backend) -> None:
        """Nobody sees the task while the transaction is open."""
        new = self.new(backend)
        async with self.transaction(backend) as connection:
            await backend.enqueue_in(connection, [new])
            assert await backend.get_task(new.task.id) is None
        assert await backend.get_task(new.task.id) is not None

    async def test_gone_at_rollback(self, backend: Backend) -> None:
        """A rollback leaves nothing, and the id is free."""
        new = self.new(backend)
        assert [answer.created for answer in await self.rolled_back(backend, new)] == [True]
        assert await backend.get_task(new.task.id) is None
        assert await self.take(backend) == []
        assert [answer.created for answer in await backend.enqueue_tasks([new])] == [True]

    async def test_idempotent_inside(self, backend: Backend) -> None:
        """The same task twice in one transaction is stored once, and one that was there stays as it was."""
        there, new = self.new(backend), self.new(backend)
        await backend.enqueue_tasks([there])
        async with self.transaction(backend) as connection:
            answers = await backend.enqueue_in(connection, [new, there])
            answers += await backend.enqueue_in(connection, [new])
        assert [answer.created for answer in answers] == [True, False, False]
        assert {task.id for task in await self.take(backend, count=5)} == {there.task.id, new.task.id}

    @requires(Capability.UNIQUE)
    async def test_unique_inside(self, backend: Backend) -> None:
        """A held key is respected inside a transaction, and one that was rolled back is free."""
        lost, held, later = (self.new(backend, options=TaskOptions(unique="k")) for _ in range(3))
        assert [answer.created for answer in await self.rolled_back(backend, lost)] == [True]
        assert [answer.created for answer in await backend.enqueue_tasks([held])] == [True]
        async with self.transaction(backend) as connection:
            (answer,) = await backend.enqueue_in(connection, [later])
        assert (answer.id, answer.created) == (held.task.id, False)

    async def test_a_wrong_connection_is_refused(self, backend: Backend) -> None:
        """Something that is no connection to this store gets a clear error, and stores nothing."""
        new = self.new(backend)
        with pytest.raises(SitqError):
            await backend.enqueue_in(object(), [new])
        assert await backend.get_task(new.task.id) is None

    async def test_through_the_queue(self, backend: Backend) -> None:
        """`queue.options(connection=…)`: what is committed runs, what is rolled back does not."""
        handles: list[TaskHandle[Any]] = []
        async with TaskQueue(backend) as queue:
            for rollback in (False, True):
                with suppress(_RollbackError):
                    async with self.transaction(backend) as connection:
                        handles.append(await queue.options(connection=connection).enqueue(add, 1, 2))
                        if rollback:
                            raise _RollbackError
            await Worker(queue).run_until_empty()
            kept, lost = handles
            assert await kept.result(30) == 3
            assert await queue.get_task(lost) is None
