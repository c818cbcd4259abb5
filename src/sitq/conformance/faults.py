"""Every method of the contract fails once, in every way, under queue and worker: nothing is lost, nothing doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from uuid import uuid4

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, PATIENCE, Kit, requires
from sitq.conformance.calls import Tally, flaky, stamp
from sitq.core import Held, Retry
from sitq.exceptions import BackendError, WorkerError
from sitq.queue import TaskHandle, TaskQueue
from sitq.testing import Fault, FaultyBackend, InjectedError, Plan
from sitq.worker import Worker

_METHODS = [
    "abandon_worker", "cancel_tasks", "clone", "close", "connect", "count_tasks", "enqueue_in", "enqueue_task",
    "enqueue_tasks", "extend_leases", "get_result", "get_task", "has_active_tasks", "list_tasks", "list_workers",
    "pause_queue", "purge", "requeue_tasks", "reserve", "reserve_task", "settle", "store_result", "update_task_status",
    "wait_for_result", "wait_for_work",
]  # fmt: skip
_UNHEARD = ("reserve", "reserve_task")  # without leases, an answer of these that is lost strands its tasks


class FaultTests(Kit):
    """A store that is having a bad day."""

    @pytest.mark.parametrize("fault", list(Fault))
    async def test_every_method_may_fail(
        self, backend: Backend, make_backend: Callable[[], Backend], fault: Fault
    ) -> None:
        """Each method fails at its first two calls: every acknowledged task still ends once, with its result."""
        methods = [name for name in _METHODS if self._survivable(backend, name, fault)]
        faults = dict.fromkeys(range(2), fault)
        if self.persistent and Capability.QUEUES not in backend.capabilities:
            await self._run(make_backend(), dict.fromkeys(methods, faults))  # apart, they would take each other's tasks
            return
        async with asyncio.TaskGroup() as group:
            for method in methods:
                group.create_task(self._run(make_backend(), {method: faults}))

    @pytest.mark.parametrize("seed", range(3))
    async def test_all_may_fail_at_random(
        self, backend: Backend, make_backend: Callable[[], Backend], seed: int
    ) -> None:
        """One call in ten fails, whichever it is: every acknowledged task still ends once, with its result."""

        def plan(method: str, number: int) -> Fault | None:
            fault = chaos(method, number)
            return fault if fault and self._survivable(backend, method, fault) else None

        chaos = FaultyBackend(backend, seed=seed, rate=0.1)._faults._plan
        await self._run(make_backend(), plan)

    @requires(Capability.LEASES)
    async def test_an_unheard_reserve_comes_back(self, backend: Backend) -> None:
        """A reserve whose answer was lost gives its tasks to the next one within one lease."""
        lease = self.span(backend) * 4
        worker = self.worker(lease)
        faulty = FaultyBackend(backend, {"reserve": {0: Fault.RAISE_AFTER}})
        task_id = await self.put_one(backend)
        with pytest.raises(InjectedError):
            await faulty.reserve(worker, 1)
        assert await self.take(backend) == []
        held: list[Held] = []
        await self.let_pass(backend, lease / 2)
        await faulty.extend_leases(worker, held)
        await self.let_pass(backend, lease / 2)
        assert (await self.take_soon(backend)).id == task_id

    def _survivable(self, backend: Backend, method: str, fault: Fault) -> bool:
        if (method, fault) == ("close", Fault.RAISE):
            return False  # what could not be closed stays open
        unheard = fault == Fault.RAISE_AFTER and method in _UNHEARD
        return Capability.LEASES in backend.capabilities or not unheard

    async def _run(self, backend: Backend, plan: Plan | Mapping[str, Mapping[int, Fault]]) -> None:
        """Enqueue, work and wait against the faults; check what came of it."""
        faulty = FaultyBackend(backend, plan)
        key = uuid4().hex[:12]
        names = [key] if Capability.QUEUES in backend.capabilities else None
        queue = TaskQueue(faulty)
        try:
            async with asyncio.timeout(PATIENCE * 2):
                await self._until_it_works(queue.connect)
                handles = await self._enqueue(queue, key, names)
                await self._work(queue, handles, names)
            for number, handle in handles:
                result = await backend.get_result(handle)
                assert result is not None
                assert queue.deserialize_result(result) == (2 if number == 0 else 1), f"task {number}"
                task = await backend.get_task(handle)
                assert task is not None
                assert task.status == "completed", f"task {number} is {task.status}"
            for number in range(6):
                runs = len(Tally.times(f"{key}-{number}"))
                assert runs <= (2 if number == 0 else 1), f"task {number} ran {runs} times: {faulty.injected}"
        finally:
            await self._until_it_works(queue.close)

    async def _enqueue(self, queue: TaskQueue, key: str, names: list[str] | None) -> list[tuple[int, TaskHandle[int]]]:
        """Enqueue, once each; return those that were acknowledged, with their numbers."""
        retry = Retry(max_attempts=5, base=0.01, cap=0.01)  # a reservation nobody heard of counts as one
        configured = queue.options(retry=retry, queue=names[0] if names else "default")
        handles: list[tuple[int, TaskHandle[int]]] = []
        for number in range(6):
            with suppress(InjectedError):
                if number == 0:
                    handles.append((number, await configured.enqueue(flaky, f"{key}-{number}", 1)))
                else:
                    handles.append((number, await configured.enqueue(stamp, f"{key}-{number}")))
        return handles

    async def _work(
        self, queue: TaskQueue, handles: list[tuple[int, TaskHandle[int]]], names: list[str] | None
    ) -> None:
        """Run workers until every task has a result; one that could not start is started again."""
        waiting = dict(handles)
        while waiting:
            with suppress(InjectedError, WorkerError):
                async with Worker(queue, queues=names, poll_interval=0.05, lease=2.0, grace=5.0):
                    while waiting:
                        number, handle = next(iter(waiting.items()))
                        with suppress(BackendError):
                            if await queue.get_result(handle, timeout=LONG) is not None:
                                del waiting[number]

    async def _until_it_works(self, call: Callable[[], Awaitable[object]]) -> None:
        for _ in range(20):
            with suppress(InjectedError):
                await call()
                return
        raise AssertionError("twenty calls in a row failed")
