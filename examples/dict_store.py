"""The example class of the page `sitq.backends.base`, filled in with a dict: six methods, and tasks run."""

import asyncio
from collections.abc import Callable
from typing import Any

from sitq import Result, Task, TaskNotFoundError, TaskQueue, Worker
from sitq.backends.base import Backend, check_move
from sitq.core import ReservedTask


class DictStore(Backend):
    """Keeps tasks in a dict of this process. They do not outlive it."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {}
        self.results: dict[str, Result] = {}

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if task.id not in self.tasks:  # idempotent: the same id again changes nothing
            self.tasks[task.id] = task
            self.calls[task.id] = (function, args, kwargs)

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        ready = [task for task in self.tasks.values() if task.status == "queued"][:max_tasks]
        reserved = []
        for task in ready:  # no `await` between looking and taking: that makes it atomic
            task.status = "running"
            function, args, kwargs = self.calls[task.id]
            reserved.append(ReservedTask(id=task.id, function=function, args=args, kwargs=kwargs))
        return reserved

    async def get_task(self, task_id: str) -> Task | None:
        return self.tasks.get(task_id)

    async def update_task_status(self, task_id: str, status: str) -> None:
        task = self.tasks.get(task_id)
        if task is None:
            raise TaskNotFoundError(task_id)
        task.status = check_move(task_id, task.status, status)

    async def store_result(self, task_id: str, result: Result) -> None:
        if task_id not in self.tasks:
            raise TaskNotFoundError(task_id)
        self.results[task_id] = result

    async def get_result(self, task_id: str) -> Result | None:
        return self.results.get(task_id)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def main() -> None:
    """Run one task."""
    async with TaskQueue(DictStore()) as queue:
        handle = await queue.enqueue(add, 2, 3)
        async with Worker(queue):
            print(await handle.result(timeout=5))


if __name__ == "__main__":
    asyncio.run(main())
