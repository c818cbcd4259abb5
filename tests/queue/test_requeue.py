"""What an operator runs again is due at once, also when it was ended before its time had come."""

from pathlib import Path

import pytest

from sitq import TaskQueue
from sitq.core import Outcome, utcnow
from stores import STORES

HOUR = 3600.0


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("waits", ["scheduled", "deferred"])
async def test_it_is_due_now(store: str, waits: str, tmp_path: Path) -> None:
    async with STORES[store](tmp_path) as backend:
        queue = TaskQueue(backend)
        task_id = await queue.options(delay=HOUR if waits == "scheduled" else 0).enqueue(print)
        if waits == "deferred":
            (task,) = await backend.reserve_task("w")
            await backend.settle([Outcome.deferred(task_id, task.fence, HOUR)])
        assert await backend.reserve_task("w") == []
        await queue.cancel(task_id)
        assert await backend.requeue_tasks([task_id]) == [True]
        (task,) = await backend.reserve_task("w")
        assert task.id == task_id
        assert task.eta is None or task.eta <= utcnow()
