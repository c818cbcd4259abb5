"""The producer's side for code without an event loop: `SyncTaskQueue` runs a `TaskQueue` on a thread of its own.

The thread starts with the first call. It belongs to one process: a child made by `fork` (gunicorn, Celery, Django's
autoreload) starts its own and leaves the parent's alone.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, overload
from weakref import WeakSet

from sitq._group_commit import start_thread
from sitq.backends.base import Backend
from sitq.core import Cancelled, Result, Task
from sitq.events import Event
from sitq.exceptions import BackendError, PartialEnqueueError, SitqError, UnsupportedError
from sitq.options import OptionValues
from sitq.queue import ConfiguredQueue, Lifespan, TaskHandle, TaskQueue
from sitq.serialization import Serializer

__all__ = ["SyncConfiguredQueue", "SyncTaskHandle", "SyncTaskQueue"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_EXIT_WITHIN = 5.0
_FORK_WAITS = 5.0  # seconds


class SyncTaskHandle(str, Generic[R_co]):
    """The id of an enqueued task, with a way to its result. It is a `str`, and pickles as one.

    `created` is False when the task, or another one with its unique key, was there already.
    """

    __slots__ = ("_queue", "created")

    _queue: SyncTaskQueue
    created: bool

    def __new__(cls, task_id: str, queue: SyncTaskQueue, created: bool = True) -> Self:
        handle = super().__new__(cls, task_id)
        handle._queue = queue
        handle.created = created
        return handle

    def result(self, timeout: float | None = None) -> R_co:
        """Wait for the task and return its value; without `timeout` (seconds) for as long as it takes.

        Raises `TaskFailedError` if the task failed, `ResultTimeoutError` when the time is over and
        `TaskNotFoundError` when the store does not know the task any more.
        """
        handle: TaskHandle[R_co] = TaskHandle(str(self), self._queue.queue)
        return self._queue._call(handle.result(timeout))

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def __repr__(self) -> str:
        return f"SyncTaskHandle({str(self)!r})"


class SyncTaskQueue:
    """`TaskQueue` for plain code: the same arguments and methods, which block until they are done.

    Usable from any number of threads, and in processes forked from the one that made it. Inside a running event loop it
    works too, but holds up that loop: use `TaskQueue` there. `queue` is the `TaskQueue` behind it, to give to a
    `Worker`; `sitq worker app:queue` finds it by itself.
    """

    def __init__(
        self,
        backend: Backend | str,
        serializer: Serializer | None = None,
        *,
        lifespan: Lifespan | None = None,
        middleware: Sequence[Callable[..., Awaitable[Any]]] = (),
        contextvars: Iterable[ContextVar[Any]] = (),
        max_payload: int = 2**20,
    ) -> None:
        self.queue = TaskQueue(
            backend,
            serializer,
            lifespan=lifespan,
            middleware=middleware,
            contextvars=contextvars,
            max_payload=max_payload,
        )
        self._portal: _Portal | None = None
        self._lock = threading.Lock()
        _queues.add(self)

    def connect(self) -> None:
        """Open the store, if this process has not yet. Called by first use; call it to fail early."""
        self._call(self.queue.connect())

    def close(self) -> None:
        """Close the store and end the thread; another use opens them again. Done at exit, too."""
        self._refuse_own_thread()
        with self._lock:  # so that nobody opens it again beside this
            if self._portal is not None:
                try:
                    self._portal.close(self.queue)
                finally:
                    self._portal = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def on(self, event: str, callback: Callable[[Event], object]) -> None:
        """Call `callback(Event)` whenever `event` happens on this queue object, in the queue's own thread."""
        self.queue.on(event, callback)

    # --- enqueue ------------------------------------------------------------------------------------------------------

    @overload
    def enqueue(
        self, function: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, eta: datetime, **kwargs: Any
    ) -> SyncTaskHandle[R]: ...
    @overload
    def enqueue(self, function: Callable[..., R], /, *args: Any, eta: datetime, **kwargs: Any) -> SyncTaskHandle[R]: ...
    @overload
    def enqueue(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncTaskHandle[R]: ...
    @overload
    def enqueue(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle[R]: ...
    def enqueue(
        self, function: Callable[..., Any], /, *args: Any, eta: Any = None, **kwargs: Any
    ) -> SyncTaskHandle[Any]:
        """As `TaskQueue.enqueue`: once this returns, the task is durable at the store's level."""
        return self._handle(self._call(self.queue.enqueue(function, *args, eta=eta, **kwargs)))

    def options(self, **values: Unpack[OptionValues]) -> SyncConfiguredQueue:
        """Return this queue with options for what is enqueued next, as `TaskQueue.options` does.

        With `connection` the task is stored in the calling thread, where that connection belongs.
        """
        return SyncConfiguredQueue(self, self.queue.options(**values), in_place=values.get("connection") is not None)

    def enqueue_many(
        self, function: Callable[..., Any], calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[SyncTaskHandle[Any]]:
        """As `TaskQueue.enqueue_many`: store many calls of one function, in chunks."""
        return self._handles(self.queue.enqueue_many(function, list(calls)))

    # --- results ------------------------------------------------------------------------------------------------------

    def get_result(self, task_id: str, timeout: float | None = None) -> Result | None:
        """Return a task's result as it is now, or wait up to `timeout` seconds; None: unknown or not finished."""
        return self._call(self.queue.get_result(task_id, timeout))

    def deserialize_result(self, result: Result) -> Any:
        """Return the value of a result as a store keeps it."""
        return self.queue.deserialize_result(result)

    def get_task(self, task_id: str) -> Task | None:
        """Return a task as the store knows it now, with its progress; None if it is unknown."""
        return self._call(self.queue.get_task(task_id))

    def cancel(self, task_id: str) -> Cancelled:
        """End a queued task at once, ask a running one to stop, and say which it was (or that it had finished)."""
        return self._call(self.queue.cancel(task_id))

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _call(self, coroutine: Coroutine[Any, Any, R], in_place: bool = False) -> R:
        if in_place:
            try:
                self._submit(self.queue.connect()).result()
            except BaseException:
                coroutine.close()
                raise
            return _run_here(coroutine)
        future = self._submit(coroutine)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise BackendError("the queue was closed while this waited for it: ask again") from None
        except BaseException:
            future.cancel()  # after a Ctrl+C, nobody waits any more
            raise

    def _close_idle(self, timeout: float) -> None:
        """Close unless somebody waits for an answer; called with the lock held."""
        if self._portal is not None and self._portal.is_idle:
            portal, self._portal = self._portal, None
            with suppress(Exception):  # what was acknowledged is stored; the process ends anyway
                portal.close(self.queue, timeout)

    def _refuse_own_thread(self) -> None:
        portal = self._portal
        if portal is not None and portal.is_current:
            raise SitqError("this blocks until the queue's own thread is free, and was called in that very thread")

    def _submit(self, coroutine: Coroutine[Any, Any, R]) -> concurrent.futures.Future[R]:
        try:
            self._refuse_own_thread()
            with self._lock:  # so that no portal is closed between here and there
                if self._portal is None:
                    self._portal = _Portal()
                return self._portal.submit(coroutine)
        except SitqError:
            coroutine.close()
            raise

    def _handle(self, handle: TaskHandle[R]) -> SyncTaskHandle[R]:
        return SyncTaskHandle(str(handle), self, handle.created)

    def _handles(
        self, enqueuing: Coroutine[Any, Any, list[TaskHandle[Any]]], in_place: bool = False
    ) -> list[SyncTaskHandle[Any]]:
        try:
            return [self._handle(handle) for handle in self._call(enqueuing, in_place)]
        except PartialEnqueueError as error:
            error.accepted = [SyncTaskHandle(handle, self) for handle in error.accepted]
            raise


class SyncConfiguredQueue:
    """A queue with options for what is enqueued through it; made by `SyncTaskQueue.options`."""

    __slots__ = ("_configured", "_in_place", "_queue")

    def __init__(self, queue: SyncTaskQueue, configured: ConfiguredQueue, in_place: bool) -> None:
        self._queue = queue
        self._configured = configured
        self._in_place = in_place

    @overload
    def enqueue(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncTaskHandle[R]: ...
    @overload
    def enqueue(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle[R]: ...
    def enqueue(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SyncTaskHandle[Any]:
        """As `SyncTaskQueue.enqueue`, with these options; every keyword argument is the function's own."""
        enqueuing = self._configured.enqueue(function, *args, **kwargs)
        return self._queue._handle(self._queue._call(enqueuing, self._in_place))

    def enqueue_many(
        self, function: Callable[..., Any], calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[SyncTaskHandle[Any]]:
        """As `SyncTaskQueue.enqueue_many`, with these options."""
        return self._queue._handles(self._configured.enqueue_many(function, list(calls)), self._in_place)


class _Portal:
    """A daemon thread with an event loop: what was acknowledged is stored, so the process may end at any moment."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._pending: set[Coroutine[Any, Any, Any]] = set()
        self._thread = threading.Thread(target=self._main, name="sitq-portal", daemon=True)
        started = threading.Event()
        self._loop.call_soon(started.set)
        try:
            start_thread(self._thread)
        except BackendError:
            self._loop.close()
            raise
        started.wait()

    def submit(self, coroutine: Coroutine[Any, Any, R]) -> concurrent.futures.Future[R]:
        """Run a coroutine on the loop, in the caller's context variables."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._pending.add(coroutine)
        future.add_done_callback(lambda _: self._pending.discard(coroutine))
        return future

    @property
    def is_current(self) -> bool:
        """The caller is this very thread."""
        return threading.current_thread() is self._thread

    @property
    def is_idle(self) -> bool:
        """Nobody waits for an answer."""
        return not self._pending

    def close(self, queue: TaskQueue, timeout: float | None = None) -> None:
        """Close the queue, end the loop; whoever still waits for an answer hears that there will be none."""
        try:
            self.submit(self._shut(queue)).result(timeout)
        finally:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(timeout)

    async def _shut(self, queue: TaskQueue) -> None:
        """Call off what others wait for, and then close: the other way round, their next look would open it again."""
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me and task.get_coro() in self._pending]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)
        await queue.close()

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._closing.wait())


def _run_here(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: R = stop.value
        return value
    coroutine.close()
    raise UnsupportedError("this store joins a transaction on an event loop only: use TaskQueue")


# --- fork and exit ----------------------------------------------------------------------------------------------------

_queues: WeakSet[SyncTaskQueue] = WeakSet()
_inherited: list[_Portal | None] = []
_held_for_fork: list[threading.Lock] = []


def _before_fork() -> None:
    """Wait for threads that are being set up: a fork in the middle would find locks of asyncio taken for ever."""
    _held_for_fork.extend(q._lock for q in list(_queues) if q._lock.acquire(timeout=_FORK_WAITS))


def _after_fork_in_parent() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()


def _after_fork_in_child() -> None:
    """Leave the parent's threads alone, and their loops: closing one here would reach into the parent's."""
    _held_for_fork.clear()
    for queue in list(_queues):
        _inherited.append(queue._portal)
        queue._portal = None
        queue._lock = threading.Lock()


def _at_exit() -> None:
    """Close what nobody uses; threads that wait at this moment are daemons, and end without a word."""
    for queue in list(_queues):
        if queue._lock.acquire(timeout=_EXIT_WITHIN):
            try:
                queue._close_idle(_EXIT_WITHIN)
            finally:
                queue._lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
