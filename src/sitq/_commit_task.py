"""Group commit on an event loop: an asyncio task takes batch after batch to a store whose calls are awaited.

The sibling of `_group_commit.CommitThread`. One batch is in flight at a time; a store that lets new work and the work
of workers pass each other makes a `CommitTask` for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from sitq._group_commit import Batch, Lanes, Operation, Reading
from sitq.exceptions import BackendError

__all__ = ["AsyncExecutor", "CommitTask"]

T = TypeVar("T")


class AsyncExecutor(Reading, Protocol):
    """What a store brings to a `CommitTask`."""

    async def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        """Do a batch, all or nothing, and return its results; an exception among them is that operation's answer.

        When the connection is lost on the way, nobody knows whether the batch was done: operations are idempotent by
        id and fence, so it is repeated here, for as long as the store sees fit. What is raised is the answer.
        """


class CommitTask:
    """Does everything that is asked of a store on one event loop, batch after batch.

    The asyncio task is there while something waits: it starts with the first operation and ends with the last answer.
    """

    def __init__(self, executor: AsyncExecutor, name: str) -> None:
        self._executor = executor
        self._name = name
        self._lanes = Lanes()
        self._in_flight: list[Operation[Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._refusal: BackendError | None = None

    async def run(self, operation: Operation[T]) -> T:
        """Have an operation done and return its result."""
        operation.bind()
        self._submit(operation)
        return await operation.answer()

    def post(self, operation: Operation[Any]) -> None:
        """Have an operation done whose answer is of no interest, such as giving back what nobody heard of."""
        with suppress(BackendError):  # closed: what is held ends with its lease
            future = operation.bind()
            future.add_done_callback(_ignore)
            self._submit(operation)

    async def close(self) -> None:
        """Finish what was handed in and refuse what comes later."""
        while self._task is not None:  # an answer that nobody heard may have posted another operation
            await asyncio.wait([self._task])
        self._refusal = BackendError("the store was closed: connect to it again")

    def _submit(self, operation: Operation[Any]) -> None:
        if self._refusal is not None:
            raise self._refusal
        self._lanes.add(operation)
        if self._task is None:  # it runs after what this turn of the loop has to hand in
            self._task = asyncio.create_task(self._serve(), name=self._name)

    async def _serve(self) -> None:
        try:
            while batch := self._lanes.take():
                self._in_flight = batch
                await self._commit(Batch(batch, self._executor))
        except asyncio.CancelledError:  # the loop is being torn down
            self._fail(BackendError("interrupted: whether this was done is not known"))
            raise
        finally:
            self._in_flight = []
            self._task = None

    async def _commit(self, batch: Batch) -> None:
        while (part := batch.part()) is not None:
            try:
                results = await self._executor.execute(part)
            except Exception as error:  # noqa: BLE001 (it becomes the answer of those who asked)
                batch.failed(part, error)
            else:
                batch.done(part, results)
        batch.deliver()

    def _fail(self, error: BackendError) -> None:
        waiting = self._in_flight
        while waiting:
            for operation in waiting:
                operation.resolve(None, BackendError(*error.args))
            waiting = self._lanes.take()


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
