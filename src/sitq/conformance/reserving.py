"""Reserve is atomic: whoever asks at the same moment, in tasks, threads or processes, each task goes to one of them."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, PATIENCE, Kit, requires
from sitq.conformance.children import Child
from sitq.core import WorkerInfo

_TASKS = 120


class ReservingTests(Kit):
    """Many at once."""

    async def test_atomic_across_tasks(self, backend: Backend) -> None:
        """Of many coroutines that reserve at once, each task goes to one only, and none is left out."""
        ids = await self.put(backend, _TASKS)

        async def drain() -> list[str]:
            worker, taken = self.worker(), []
            while reserved := await backend.reserve(worker, 7):
                taken += [task.id for task in reserved]
                await asyncio.sleep(0)
            return taken

        batches = await asyncio.gather(*(drain() for _ in range(8)))
        assert Counter(task_id for batch in batches for task_id in batch) == Counter(ids)

    async def test_atomic_while_tasks_arrive(self, backend: Backend) -> None:
        """Reserving while others enqueue loses nothing and doubles nothing."""
        ids: list[str] = []
        taken: list[str] = []

        async def enqueue() -> None:
            for _ in range(_TASKS // 4):
                ids.extend(await self.put(backend))

        async def drain() -> None:
            worker = self.worker()
            while len(taken) < _TASKS:
                taken.extend(task.id for task in await backend.reserve(worker, 3))
                await asyncio.sleep(0)

        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(enqueue() for _ in range(4)), *(drain() for _ in range(4)))
        assert Counter(taken) == Counter(ids)

    @requires(Capability.LEASES)
    async def test_atomic_across_threads(self, backend: Backend) -> None:
        """Of threads with a `clone()` and an event loop each, every task goes to one only."""
        ids = await self.put(backend, _TASKS)
        taken: list[str] = []
        start = threading.Barrier(4)

        async def drain(handle: Backend) -> None:
            async with handle:
                start.wait(PATIENCE)
                while reserved := await handle.reserve(self.worker(), 5):
                    taken.extend(task.id for task in reserved)

        def thread(handle: Backend) -> None:
            asyncio.run(drain(handle))

        await asyncio.gather(*(asyncio.to_thread(thread, backend.clone()) for _ in range(4)))
        assert Counter(taken) == Counter(ids)

    @requires("persistent")
    async def test_atomic_across_processes(self, backend: Backend, make_backend: Callable[[], Backend]) -> None:
        """Of processes that open the same store, every task goes to one only."""
        ids = await self.put(backend, _TASKS)
        children = [Child("drain", make_backend) for _ in range(3)]
        outputs = await asyncio.gather(*(asyncio.to_thread(child.output) for child in children))
        assert Counter(word for output in outputs for word in output.split()) == Counter(ids)

    @requires("persistent")
    async def test_stored_tasks_outlive_their_handle(
        self, backend: Backend, make_backend: Callable[[], Backend]
    ) -> None:
        """What was stored is found by a backend that is opened later."""
        task_id = await self.put_one(backend)
        async with make_backend() as other:
            assert await other.get_task(task_id) is not None
            assert [task.id for task in await other.reserve(WorkerInfo(id="w", lease=LONG), 1)] == [task_id]
        assert (await self.stored(backend, task_id)).status == "running"
