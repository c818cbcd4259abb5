"""What every part of the suite stands on: the author's hooks, claims, and a few words for the tests."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import pytest_asyncio

from sitq.backends.base import Backend, Capability
from sitq.conformance.calls import add
from sitq.core import NewTask, ReservedTask, Result, Task, TaskOptions, WorkerInfo, utcnow
from sitq.functions import function_name

__all__ = ["LONG", "PATIENCE", "Kit", "requires", "without"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

LONG = 3600.0
"""Seconds nobody waits for: a lease that must not end, a delay that must not pass, a wait that must be woken."""

PATIENCE = 30.0
"""Seconds after which something that must happen has not happened."""

Claim = Capability | str


def requires(*claims: Claim) -> Callable[[F], F]:
    """Run a test, or all tests of a class, only where the store claims all of these.

    A claim is a `Capability`; `"persistent"`; `"clock"`, `"transaction"` or `"sabotage"` (the hook is overridden); or
    `"wait_for_work"`, `"wait_for_result"` (the method is overridden).
    """
    return _mark("sitq_requires", claims)


def without(*claims: Claim) -> Callable[[F], F]:
    """Run a test, or all tests of a class, only where the store claims none of these."""
    return _mark("sitq_without", claims)


def _mark(attribute: str, claims: tuple[Claim, ...]) -> Callable[[F], F]:
    def mark(target: F) -> F:
        tests = [value for name, value in vars(target).items() if name.startswith("test_")]
        for test in tests if isinstance(target, type) else [target]:
            setattr(test, attribute, (*getattr(test, attribute, ()), *claims))
        return target

    return mark


class Kit:
    """The author's hooks, and helpers for the tests."""

    pytestmark = pytest.mark.asyncio(loop_scope="function")

    persistent = False
    """True when `make_backend()` called again, here or in another process, opens the same store.

    Then the tests with several processes run, and `make_backend` must give something that can be pickled, such as
    `functools.partial(MyBackend, path)`.
    """

    model_divisor = 1
    """A slow store takes this many times fewer steps in the model test (2,000 by default)."""

    # Hooks an author may give. The suite asks `claims` whether one is overridden, and calls only those that are.

    def advance(self, backend: Backend, seconds: float) -> None:
        """Move the store's clock ahead. Without this hook the suite lets short real times pass instead."""
        raise NotImplementedError

    def transaction(self, backend: Backend) -> AbstractAsyncContextManager[Any]:
        """Give a connection in an open transaction: committed at the end, rolled back by an exception (TRANSACTION)."""
        raise NotImplementedError

    def sabotage(self, backend: Backend) -> None:
        """Break the store under the open backend, so that every call fails in the driver."""
        raise NotImplementedError

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """Give a function that makes the backend under test: a new, empty store in each test."""
        raise NotImplementedError(
            "override the fixture `make_backend`: it gives a function that makes your backend, such as the class itself"
        )

    @pytest_asyncio.fixture(loop_scope="function")
    async def backend(
        self, make_backend: Callable[[], Backend], request: pytest.FixtureRequest
    ) -> AsyncIterator[Backend]:
        """Give the connected backend, or skip the test where it does not claim what the test is about."""
        backend = make_backend()
        await backend.connect()
        try:
            reason = self.not_for(request.function, backend)
            if reason is not None:
                pytest.skip(reason)
            yield backend
        finally:
            await backend.close()

    # --- claims -----------------------------------------------------------------------------------------------------

    def claims(self, backend: Backend, claim: Claim) -> bool:
        """Say whether the store under test claims something."""
        if isinstance(claim, Capability):
            return claim in backend.capabilities
        if claim == "persistent":
            return self.persistent
        if claim in ("wait_for_work", "wait_for_result"):
            return getattr(type(backend), claim) is not getattr(Backend, claim)
        hook = {"clock": "advance"}.get(claim, claim)
        return getattr(type(self), hook) is not getattr(Kit, hook)

    def not_for(self, test: Callable[..., Any], backend: Backend) -> str | None:
        """Return why a test is not for this store, or None."""
        for claim in getattr(test, "sitq_requires", ()):
            if not self.claims(backend, claim):
                return f"{type(backend).__name__} does not claim {_name(claim)}"
        for claim in getattr(test, "sitq_without", ()):
            if self.claims(backend, claim):
                return f"{type(backend).__name__} claims {_name(claim)}"
        return None

    # --- time -------------------------------------------------------------------------------------------------------

    def span(self, backend: Backend) -> float:
        """Return a number of seconds that the tests can afford to let pass."""
        return 60.0 if self.claims(backend, "clock") else 0.25

    async def let_pass(self, backend: Backend, seconds: float) -> None:
        """Let at least so many seconds pass in the store."""
        if self.claims(backend, "clock"):
            self.advance(backend, seconds + 0.001)
        else:
            await asyncio.sleep(seconds + 0.001)

    async def eventually(self, probe: Callable[[], Awaitable[T]]) -> T:
        """Call `probe` until what it returns is true, and return that; fail when that takes absurdly long."""
        deadline = time.monotonic() + PATIENCE
        while not (value := await probe()):
            if time.monotonic() > deadline:
                pytest.fail(f"still {value!r} after {PATIENCE:g} seconds")
            await asyncio.sleep(0.01)
        return value

    # --- words ------------------------------------------------------------------------------------------------------

    def worker(self, lease: float = LONG, queues: tuple[str, ...] | None = None) -> WorkerInfo:
        """Make a worker with an id of its own."""
        return WorkerInfo(id=f"worker-{uuid4().hex[:8]}", queues=queues, lease=lease, host="conformance", pid=1)

    def new(
        self,
        backend: Backend,
        *args: Any,
        function: Callable[..., Any] = add,
        task_id: str | None = None,
        options: TaskOptions | None = None,
        **fields: Any,
    ) -> NewTask:
        """Make a task as a queue would: with its call, and with the payload."""
        task_id = task_id or f"task-{uuid4().hex}"
        call = args or (1, 2)
        name = function_name(function)
        payload = backend.default_serializer().encode_call(task_id, name, function, call, {})
        task = Task(id=task_id, name=name, payload=payload, options=options or TaskOptions(), **fields)
        return NewTask(task=task, function=function, args=call)

    async def put(self, backend: Backend, count: int = 1, **fields: Any) -> list[str]:
        """Store tasks, and return their ids in the order they were stored."""
        news = [self.new(backend, **fields) for _ in range(count)]
        return [accepted.id for accepted in await backend.enqueue_tasks(news)]

    async def put_one(self, backend: Backend, **fields: Any) -> str:
        """Store one task, and return its id."""
        return (await self.put(backend, **fields))[0]

    async def take(self, backend: Backend, worker: WorkerInfo | None = None, count: int = 1) -> list[ReservedTask]:
        """Reserve up to `count` tasks."""
        return await backend.reserve(worker or self.worker(), count)

    async def take_one(self, backend: Backend, worker: WorkerInfo | None = None) -> ReservedTask:
        """Reserve the task that must be there."""
        reserved = await self.take(backend, worker)
        assert len(reserved) == 1, f"one task was ready, and reserve gave {len(reserved)}"
        return reserved[0]

    async def take_soon(self, backend: Backend, worker: WorkerInfo | None = None) -> ReservedTask:
        """Reserve the task that becomes ready just now."""
        worker = worker or self.worker()
        return (await self.eventually(lambda: backend.reserve(worker, 1)))[0]

    async def stored(self, backend: Backend, task_id: str) -> Task:
        """Return a task that must be there."""
        task = await backend.get_task(task_id)
        assert task is not None, f"get_task does not know the stored task {task_id}"
        return task

    def success(self, backend: Backend, task_id: str, value: Any = 3) -> Result:
        """Make the result of a task that returned `value`, as a worker would."""
        payload = backend.default_serializer().encode_result(task_id, value)
        return Result(task_id=task_id, payload=payload, value=value, enqueued_at=utcnow(), finished_at=utcnow())

    def failure(self, task_id: str, error: str = "RuntimeError: no") -> Result:
        """Make the result of a task that failed, as a worker would."""
        return Result(
            task_id=task_id, status="failed", error=error, traceback=f"Traceback …\n{error}", reason="error",
            started_at=utcnow(), finished_at=utcnow(),
        )  # fmt: skip


def _name(claim: Claim) -> str:
    return str(claim.name) if isinstance(claim, Capability) else claim


def renewed(worker: WorkerInfo, lease: float) -> WorkerInfo:
    """Return the same worker with another lease."""
    return dataclasses.replace(worker, lease=lease)
