"""A backend that fails on purpose: before its work, after it, or by being slow, at the calls a plan or a seed names."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Self, TypeVar

from sitq.backends.base import Backend
from sitq.core import (
    Accepted,
    Cancelled,
    Extended,
    Finding,
    Held,
    NewTask,
    Outcome,
    QueueCounts,
    ReservedTask,
    Result,
    Task,
    TaskFilter,
    WorkerInfo,
)
from sitq.exceptions import BackendError
from sitq.serialization import Serializer

__all__ = ["Fault", "FaultyBackend", "InjectedError", "Plan"]

T = TypeVar("T")


class Fault(StrEnum):
    """What goes wrong at one call."""

    RAISE = "raise"
    """`InjectedError`, and nothing was done."""
    DELAY = "delay"
    """The work is done, late."""
    RAISE_AFTER = "raise after"
    """The work is done, and its answer is lost: `InjectedError`."""


class InjectedError(BackendError):
    """Raised by a `FaultyBackend` on purpose."""


Plan = Callable[[str, int], Fault | None]
"""From a method's name and the number of its call to what goes wrong, if anything."""


class _Faults:
    """Which fault is next; shared by a backend and its clones, which may live in other threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self.injected: list[tuple[str, int, Fault]] = []

    def next(self, method: str) -> Fault | None:
        with self._lock:
            number = self._calls[method]
            self._calls[method] += 1
            fault = self._plan(method, number)
            if fault is not None:
                self.injected.append((method, number, fault))
            return fault


class FaultyBackend(Backend):
    """Wraps a backend and makes calls fail.

    `plan` says where: a mapping from a method's name to the faults of its calls, counted from 0, or a function of name
    and number. With `seed` instead, each call fails with probability `rate`, the same way every time. A `DELAY` takes
    `delay` seconds. What the wrapped backend leaves to `Backend` is composed here, so faults hit the six inside too.

        FaultyBackend(MemoryBackend(), {"settle": {0: Fault.RAISE_AFTER}})
        FaultyBackend(MemoryBackend(), seed=7, rate=0.2)
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan | Mapping[str, Mapping[int, Fault]] | None = None,
        *,
        seed: int | None = None,
        rate: float = 0.1,
        delay: float = 0.01,
    ) -> None:
        self.backend = backend
        self.capabilities = backend.capabilities
        self.poll_interval = backend.poll_interval
        self.delay = delay
        self._faults = _Faults(_plan(plan, seed, rate))

    @property
    def injected(self) -> Sequence[tuple[str, int, Fault]]:
        """What has gone wrong so far: method, number of the call, fault."""
        return tuple(self._faults.injected)

    async def _call(self, method: str, work: Callable[[], Awaitable[T]]) -> T:
        fault = self._faults.next(method)
        if fault == Fault.RAISE:
            raise InjectedError(f"{method} failed on purpose, and nothing was done")
        if fault == Fault.DELAY:
            await asyncio.sleep(self.delay)
        answer = await work()
        if fault == Fault.RAISE_AFTER:
            raise InjectedError(f"the answer of {method} was lost on purpose; its work is done")
        return answer

    def _method(self, name: str, composed: Callable[..., T]) -> Callable[..., T]:
        """Return the wrapped backend's own method, or what `Backend` composes from this one's six."""
        own: Callable[..., T] = getattr(self.backend, name)
        return composed if getattr(type(self.backend), name) is getattr(Backend, name) else own

    # --- the contract, method by method -------------------------------------------------------------------------------

    async def connect(self) -> None:
        await self._call("connect", self.backend.connect)
        self.capabilities = self.backend.capabilities
        self.poll_interval = self.backend.poll_interval

    async def connect_existing(self) -> None:
        await self._call("connect_existing", self.backend.connect_existing)
        self.capabilities = self.backend.capabilities

    async def close(self) -> None:
        await self._call("close", self.backend.close)

    def default_serializer(self) -> Serializer:
        return self.backend.default_serializer()

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        await self._call("enqueue_task", lambda: self.backend.enqueue_task(task, function, args, kwargs))

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        return await self._call("reserve_task", lambda: self.backend.reserve_task(worker_id, max_tasks))

    async def get_task(self, task_id: str) -> Task | None:
        return await self._call("get_task", lambda: self.backend.get_task(task_id))

    async def update_task_status(self, task_id: str, status: str) -> None:
        await self._call("update_task_status", lambda: self.backend.update_task_status(task_id, status))

    async def store_result(self, task_id: str, result: Result) -> None:
        await self._call("store_result", lambda: self.backend.store_result(task_id, result))

    async def get_result(self, task_id: str) -> Result | None:
        return await self._call("get_result", lambda: self.backend.get_result(task_id))

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        method = self._method("enqueue_tasks", super().enqueue_tasks)
        return await self._call("enqueue_tasks", lambda: method(tasks))

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        method = self._method("reserve", super().reserve)
        return await self._call("reserve", lambda: method(worker, max_tasks))

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        method = self._method("settle", super().settle)
        return await self._call("settle", lambda: method(outcomes))

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        method = self._method("wait_for_work", super().wait_for_work)
        await self._call("wait_for_work", lambda: method(worker, timeout))

    async def wait_for_result(self, task_id: str, timeout: float) -> Result | None:
        method = self._method("wait_for_result", super().wait_for_result)
        return await self._call("wait_for_result", lambda: method(task_id, timeout))

    async def diagnose(self) -> Sequence[Finding]:
        return await self._call("diagnose", self.backend.diagnose)

    def clone(self) -> Self:
        fault = self._faults.next("clone")
        if fault == Fault.RAISE:
            raise InjectedError("clone failed on purpose")
        other = type(self)(self.backend.clone(), delay=self.delay)
        other._faults = self._faults
        return other

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        return await self._call("extend_leases", lambda: self.backend.extend_leases(worker, held))

    async def abandon_worker(self, worker_id: str) -> int:
        return await self._call("abandon_worker", lambda: self.backend.abandon_worker(worker_id))

    async def cancel_tasks(self, task_ids: Sequence[str]) -> list[Cancelled]:
        return await self._call("cancel_tasks", lambda: self.backend.cancel_tasks(task_ids))

    async def requeue_tasks(self, task_ids: Sequence[str]) -> list[bool]:
        return await self._call("requeue_tasks", lambda: self.backend.requeue_tasks(task_ids))

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        return await self._call("list_tasks", lambda: self.backend.list_tasks(wanted, limit))

    async def count_tasks(self) -> list[QueueCounts]:
        return await self._call("count_tasks", self.backend.count_tasks)

    async def has_active_tasks(self, worker: WorkerInfo) -> bool:
        return await self._call("has_active_tasks", lambda: self.backend.has_active_tasks(worker))

    async def list_workers(self) -> list[WorkerInfo]:
        return await self._call("list_workers", self.backend.list_workers)

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        return await self._call("purge", lambda: self.backend.purge(wanted, limit))

    async def pause_queue(self, queue: str, paused: bool) -> None:
        await self._call("pause_queue", lambda: self.backend.pause_queue(queue, paused))

    async def enqueue_in(self, connection: Any, tasks: Sequence[NewTask]) -> list[Accepted]:
        return await self._call("enqueue_in", lambda: self.backend.enqueue_in(connection, tasks))


def _plan(plan: Plan | Mapping[str, Mapping[int, Fault]] | None, seed: int | None, rate: float) -> Plan:
    if callable(plan):
        return plan
    if plan is not None:
        faults = plan
        return lambda method, number: faults.get(method, {}).get(number)
    if seed is None:
        return lambda _method, _number: None
    return lambda method, number: _drawn(random.Random(f"{seed} {method} {number}"), rate)  # noqa: S311 (repeatable)


def _drawn(source: random.Random, rate: float) -> Fault | None:
    return source.choice(list(Fault)) if source.random() < rate else None
