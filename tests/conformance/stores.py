"""Stores that only the tests need."""

from collections.abc import Callable
from typing import Any

from sitq import MemoryBackend, Result, Task
from sitq.backends.base import Backend
from sitq.core import ReservedTask


class SixMethods(Backend):
    """The reference store with all but its six methods taken away."""

    def __init__(self) -> None:
        self._inner = MemoryBackend()

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        await self._inner.enqueue_task(task, function, args, kwargs)

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        return await self._inner.reserve_task(worker_id, max_tasks)

    async def get_task(self, task_id: str) -> Task | None:
        return await self._inner.get_task(task_id)

    async def update_task_status(self, task_id: str, status: str) -> None:
        await self._inner.update_task_status(task_id, status)

    async def store_result(self, task_id: str, result: Result) -> None:
        await self._inner.store_result(task_id, result)

    async def get_result(self, task_id: str) -> Result | None:
        return await self._inner.get_result(task_id)
