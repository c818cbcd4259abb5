"""Looking at many tasks: page by page, so that no script keeps the server from its work for long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from sitq.backends._view import matches
from sitq.backends.redis._rows import moment, task_from, worker_from
from sitq.core import Phase, QueueCounts, Status, Task, TaskFilter, WorkerInfo
from sitq.exceptions import TaskNotFoundError

__all__ = ["count", "list_tasks", "purge", "workers"]

_PAGE = 500

Ask = Callable[..., Awaitable[Any]]


async def _matching(read: Ask, wanted: TaskFilter, limit: int) -> AsyncIterator[Task]:
    """Go through the tasks that match, newest first."""
    place: str | bytes = ""
    after = wanted.after or ""
    is_plain = wanted == TaskFilter(after=wanted.after)
    while True:
        page = await read("page", place, min(limit, _PAGE) if is_plain else _PAGE, after)
        if page is None:
            raise TaskNotFoundError(after)
        now, place, rows = page
        after = ""
        for row in rows:
            task = task_from(row, now) if row else None
            if task is not None and matches(task, wanted, moment(now) or task.created_at):
                yield task
        if not place:
            return


async def list_tasks(read: Ask, wanted: TaskFilter, limit: int) -> list[Task]:
    """Return tasks without payload, newest first."""
    found: list[Task] = []
    if limit > 0:
        async for task in _matching(read, wanted, limit):
            found.append(task)
            if len(found) == limit:
                break
    return found


async def purge(read: Ask, call: Ask, wanted: TaskFilter, limit: int) -> int:
    """Delete finished tasks that match."""
    gone: list[str] = []
    async for task in _matching(read, wanted, _PAGE):
        if task.status in (Status.COMPLETED, Status.FAILED) and len(gone) < limit:
            gone.append(task.id)
        if len(gone) == limit:
            break
    count = 0
    for at in range(0, len(gone), _PAGE):
        count += await call("forget", *gone[at : at + _PAGE])
    return count


async def count(read: Ask) -> list[QueueCounts]:
    """Count the tasks of each queue by phase."""
    paused = {name.decode() for name in await read("paused")}
    phases: dict[str, dict[str, int]] = {queue: {} for queue in paused}
    oldest: dict[str, int] = {}
    place: bytes | str = ""
    while True:
        place, *groups = await read("census", place, _PAGE)
        for at in range(0, len(groups), 4):
            queue, phase = groups[at].decode(), groups[at + 1].decode()
            counts = phases.setdefault(queue, {})
            counts[phase] = counts.get(phase, 0) + int(groups[at + 2])
            if phase == Phase.READY:
                oldest[queue] = min(int(groups[at + 3]), oldest.get(queue, int(groups[at + 3])))
        if not place:
            break

    def since(queue: str) -> datetime | None:
        return moment(oldest.get(queue))

    return [
        QueueCounts(queue=queue, phases=phases[queue], paused=queue in paused, oldest_ready=since(queue))
        for queue in sorted(phases)
    ]


def workers(answer: list[Any]) -> list[WorkerInfo]:
    """Return the workers heard of within their lease."""
    _now, *seen = answer
    return [worker_from(seen[at], seen[at + 1], seen[at + 2]) for at in range(0, len(seen), 3) if seen[at + 2]]
