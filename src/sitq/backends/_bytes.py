"""The six methods, called by hand, on a store that keeps bytes.

Queue and worker hand such a store encoded calls and results and never come through here. Called directly, the six
take and give Python objects, so this is the one place where a store encodes and decodes, by its `default_serializer`.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from sitq.backends.base import Backend
from sitq.core import NewTask, Outcome, Reason, ReservedTask, Result, Task, WorkerInfo, utcnow
from sitq.exceptions import SerializationError, ValidationError
from sitq.functions import function_name

__all__ = ["ByteBackend"]


class ByteBackend(Backend):
    """A backend whose calls and results are bytes: writes three of the six on top of the batch methods."""

    @abstractmethod
    async def _write_result(self, task_id: str, result: Result) -> None:
        """Store `result` as it is; raise `TaskNotFoundError` for an unknown id."""

    @abstractmethod
    async def _read_result(self, task_id: str) -> Result | None:
        """Return the stored result without decoding its value."""

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if task.payload is None:
            if not callable(function):
                raise ValidationError(f"task {task.id!r} needs a function to call, not {function!r}")
            name = task.name or function_name(function)
            payload = self.default_serializer().encode_call(task.id, name, function, tuple(args), dict(kwargs))
            task = dataclasses.replace(task, name=name, payload=payload)
        await self.enqueue_tasks([NewTask(task=task)])

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        reserved = await self.reserve(WorkerInfo(id=worker_id), max_tasks)
        return [task for task in reserved if await self._decode_call(task)]

    async def store_result(self, task_id: str, result: Result) -> None:
        if result.status not in ("success", "failed"):
            raise ValidationError(f'a result is "success" or "failed", not {result.status!r}')
        if result.payload is None and result.status == "success":
            payload = self.default_serializer().encode_result(task_id, result.value)
            result = dataclasses.replace(result, payload=payload, value=None)
        await self._write_result(task_id, result)

    async def get_result(self, task_id: str) -> Result | None:
        result = await self._read_result(task_id)
        serializer = self.default_serializer()
        if result is None or result.payload is None or not serializer.recognizes(result.payload):
            return result  # nothing to decode, or written by the serializer of a queue: the queue decodes it
        return dataclasses.replace(result, value=serializer.decode_result(task_id, result.payload))

    async def _decode_call(self, task: ReservedTask) -> bool:
        """Fill in the call; a task that cannot be decoded ends as failed, so that it does not strand."""
        if task.payload is None:
            return True
        try:
            call = self.default_serializer().decode_call(task.id, task.name, task.payload)
        except SerializationError as error:
            reason = Reason.UNDECODABLE
            result = Result(
                task_id=task.id, status="failed", error=str(error), reason=reason, enqueued_at=task.created_at,
                finished_at=utcnow(),
            )  # fmt: skip
            await self.settle([Outcome.failed(task.id, task.fence, result)])
            return False
        task.function, task.args, task.kwargs = call
        return True
