"""The producer's side: make a task, hand it to the store, wait for its result."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NoReturn, ParamSpec, Self, TypeVar, Unpack, overload

from sitq._calls import Calls, Known
from sitq._ids import new_id
from sitq.backends.base import Backend, Capability
from sitq.backends.urls import backend_from_url
from sitq.core import Accepted, Cancelled, NewTask, Result, Task, TaskOptions, utcnow
from sitq.events import Event, EventName, Listeners
from sitq.exceptions import (
    PartialEnqueueError,
    PayloadTooLargeError,
    ResultTimeoutError,
    TaskFailedError,
    TaskNotFoundError,
    UnsupportedError,
    ValidationError,
)
from sitq.options import OptionValues, Plan, check_moment, moment_after, validate_options
from sitq.serialization import Serializer

__all__ = ["ConfiguredQueue", "TaskHandle", "TaskQueue"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Lifespan = Callable[["TaskQueue"], AbstractAsyncContextManager[Any]]

_CHUNK_TASKS = 1_000
_CHUNK_BYTES = 4 * 2**20
_LONG_WAIT = 60.0


class _NotGiven:
    """The default of `eta`: None itself may be the argument of a function's own `eta`. Reads as None in signatures."""

    def __repr__(self) -> str:
        return "None"


_NOT_GIVEN: Any = _NotGiven()


class TaskHandle(str, Generic[R_co]):
    """The id of an enqueued task, with ways to its result. It is a `str`, and pickles as one.

    `created` is False when the task, or another one with its unique key, was there already.
    """

    __slots__ = ("_queue", "created")

    _queue: TaskQueue
    created: bool

    def __new__(cls, task_id: str, queue: TaskQueue, created: bool = True) -> Self:
        handle = super().__new__(cls, task_id)
        handle._queue = queue
        handle.created = created
        return handle

    async def result(self, timeout: float | None = None) -> R_co:
        """Wait for the task and return its value; without `timeout` (seconds) for as long as it takes.

        Raises `TaskFailedError` if the task failed, `ResultTimeoutError` when the time is over and
        `TaskNotFoundError` when the store does not know the task any more.
        """
        left = timeout
        while True:
            wait = _LONG_WAIT if left is None else min(left, _LONG_WAIT)
            result = await self._queue.get_result(self, timeout=wait)
            if result is not None:
                break
            left = None if left is None else left - wait
            if left is not None and left <= 0:
                raise ResultTimeoutError(
                    f"task {self} has no result after {timeout} seconds: wait longer, or ask later"
                )
            if await self._queue.backend.get_task(str(self)) is None:
                raise TaskNotFoundError(str(self))
        if result.status != "success":
            raise TaskFailedError(result)
        value: R_co = result.value
        return value

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def __repr__(self) -> str:
        return f"TaskHandle({str(self)!r})"


class TaskQueue:
    """Puts calls into a store and brings back their results.

    `backend` is a `Backend` or a URL such as `"sqlite:///tasks.db"`. `serializer` encodes calls and values (default:
    the backend's). `lifespan` opens what tasks need, in the worker and its child processes: an async context manager of
    the queue, whose value is `current_task().state`. `middleware` wraps every execution, the first one outermost.
    `contextvars` are the context variables whose values travel from `enqueue` into the task, as plain data.
    `max_payload` bounds an encoded call or value, in bytes.

    Nothing is opened before the first use; use it as an async context manager to close it again. A queue inherited
    through `fork` rebuilds its connection in the child.
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
        if not isinstance(backend, (Backend, str)):
            raise ValidationError(f"a queue needs a Backend or a URL, not {backend!r}")
        if type(max_payload) is not int or max_payload < 1:
            raise ValidationError(f"max_payload is a number of bytes, at least 1, not {max_payload!r}")
        self.backend = backend_from_url(backend) if isinstance(backend, str) else backend
        self.serializer = serializer or self.backend.default_serializer()
        self.lifespan = lifespan
        self.middleware = tuple(middleware)
        self.contextvars: Mapping[str, ContextVar[Any]] = {variable.name: variable for variable in contextvars}
        self.max_payload = max_payload
        self.listeners = Listeners()
        self._calls = Calls()
        self._connected_in = 0  # the process id that connected

    async def connect(self) -> None:
        """Open the store, if this process has not yet. Called by first use; call it to fail early."""
        if self._connected_in != os.getpid():
            await self.backend.connect()
            self._connected_in = os.getpid()

    async def close(self) -> None:
        """Close the store."""
        if self._connected_in == os.getpid():
            self._connected_in = 0
            await self.backend.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a TaskQueue cannot be pickled: inside a task use current_task().queue, elsewhere import the queue by name"
        )

    def on(self, event: str, callback: Callable[[Event], object]) -> None:
        """Call `callback(Event)` whenever `event` (an `EventName`) happens on this queue object or a worker of it."""
        self.listeners.add(event, callback)

    # --- enqueue ------------------------------------------------------------------------------------------------------

    @overload
    async def enqueue(
        self, function: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, eta: datetime | None, **kwargs: Any
    ) -> TaskHandle[R]: ...
    @overload
    async def enqueue(
        self, function: Callable[..., R], /, *args: Any, eta: datetime | None, **kwargs: Any
    ) -> TaskHandle[R]: ...
    @overload
    async def enqueue(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[R]: ...
    @overload
    async def enqueue(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    async def enqueue(
        self, function: Callable[..., Any], /, *args: Any, eta: Any = _NOT_GIVEN, **kwargs: Any
    ) -> TaskHandle[Any]:
        """Store the call `function(*args, **kwargs)`, to be run by a worker, not before `eta` (an aware `datetime`).

        Once this returns, the task is durable at the store's level. Raises `ValidationError` when the arguments do not
        fit the function, `SerializationError` when they cannot be encoded, `BackendError` when the store cannot take
        it.
        """
        known = self._calls.known(function)
        plan = known.plan
        if eta is not _NOT_GIVEN:
            if known.has_parameter("eta"):
                raise ValidationError(
                    f"{function!r} has a parameter named eta: use queue.options(eta=…).enqueue(…) for when it runs, "
                    "queue.options().enqueue(…, eta=…) for its argument"
                )
            plan = dataclasses.replace(plan, eta=check_moment("eta", eta), delay=None)
        return await self._enqueue(known, plan, function, args, kwargs)

    def options(self, **values: Unpack[OptionValues]) -> ConfiguredQueue:
        """Return this queue with options for what is enqueued next: `queue.options(delay=60).enqueue(f, x)`.

        queue, priority (0 to 9, higher first), delay or eta, expires, timeout, retry, unique, unique_for, executor,
        retention, context, connection; durations are seconds or `timedelta`s. They have the last word over `@task`.
        """
        return ConfiguredQueue(self, validate_options(values, per_enqueue=True))

    async def enqueue_many(
        self, function: Callable[..., Any], calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[TaskHandle[Any]]:
        """Store many calls of one function: each item holds the positional arguments, or, as a dict, the keyword ones.

        Stored in chunks of up to 1,000 tasks and 4 MiB, each all or nothing. When a later chunk fails,
        `PartialEnqueueError.accepted` has the handles of those before.
        """
        known = self._calls.known(function)
        return await self._enqueue_many(known, known.plan, function, calls)

    async def _enqueue(
        self, known: Known, plan: Plan, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TaskHandle[Any]:
        new = self._new_task(known, plan, function, args, kwargs)
        (handle,) = await self._store([new], plan)
        return handle

    async def _enqueue_many(
        self,
        known: Known,
        plan: Plan,
        function: Callable[..., Any],
        calls: Iterable[Sequence[Any] | Mapping[str, Any]],
    ) -> list[TaskHandle[Any]]:
        if not isinstance(calls, Iterable):
            raise ValidationError(f"enqueue_many takes the function and a list of calls, not {calls!r}")
        handles: list[TaskHandle[Any]] = []
        chunk: list[NewTask] = []
        size = 0
        try:
            for call in calls:
                args, kwargs = _arguments(call)
                new = self._new_task(known, plan, function, args, kwargs)
                size += len(new.task.payload or b"")
                if len(chunk) == _CHUNK_TASKS or (chunk and size > _CHUNK_BYTES):
                    handles += await self._store(chunk, plan)
                    chunk, size = [], len(new.task.payload or b"")
                chunk.append(new)
            if chunk:
                handles += await self._store(chunk, plan)
        except Exception as error:
            if not handles:
                raise
            raise PartialEnqueueError(handles) from error
        return handles

    def _new_task(
        self, known: Known, plan: Plan, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> NewTask:
        known.check(args, kwargs)
        task_id, name, now = new_id(), known.name, utcnow()
        payload = self.serializer.encode_call(task_id, name, function, args, kwargs)
        if len(payload) > self.max_payload:
            raise PayloadTooLargeError(
                f"the call of {name} takes {len(payload):,} bytes, over the limit of {self.max_payload:,}: pass a "
                "reference (a path, a key), or raise TaskQueue(max_payload=…)"
            )
        options = plan.options
        if plan.expires is not None or self.contextvars:
            options = self._options_now(plan)
        eta = plan.eta if plan.delay is None else now + timedelta(seconds=plan.delay)
        if eta is not None and eta.tzinfo is not UTC:
            eta = eta.astimezone(UTC)
        task = Task(id=task_id, name=name, payload=payload, options=options, created_at=now, eta=eta)
        return NewTask(task=task, function=function, args=args, kwargs=kwargs)

    def _options_now(self, plan: Plan) -> TaskOptions:
        """Return the options with what depends on the moment of the enqueue: expiry and context variables."""
        options = plan.options
        values = {name: variable.get() for name, variable in self.contextvars.items() if variable.get(None) is not None}
        if values:
            context = dict(options.context) | {"contextvars": values}
            options = dataclasses.replace(options, context=validate_options({"context": context})["context"])
        moment = moment_after(plan.expires)
        return options if moment is None else dataclasses.replace(options, expires_at=moment.astimezone(UTC))

    async def _store(self, tasks: list[NewTask], plan: Plan) -> list[TaskHandle[Any]]:
        await self.connect()
        self._refuse_what_is_missing(plan.options)
        if plan.connection is None:
            accepted = await self.backend.enqueue_tasks(tasks)
        else:
            accepted = await self.backend.enqueue_in(plan.connection, tasks)
        if self.listeners.wanted(EventName.ENQUEUED):
            self._tell_enqueued(tasks, accepted)
        return [TaskHandle(item.id, self, item.created) for item in accepted]

    def _refuse_what_is_missing(self, options: TaskOptions) -> None:
        has = self.backend.capabilities
        if (options.queue != "default" or options.priority) and Capability.QUEUES not in has:
            self._missing("queue and priority need", Capability.QUEUES)
        if options.unique is not None and Capability.UNIQUE not in has:
            self._missing("unique needs", Capability.UNIQUE)

    def _missing(self, what: str, capability: Capability) -> NoReturn:
        store = type(self.backend).__name__
        raise UnsupportedError(
            f"{what} the capability {capability.name}, which {store} lacks: leave it out or change stores"
        )

    def _tell_enqueued(self, tasks: list[NewTask], accepted: Sequence[Accepted]) -> None:
        for new, item in zip(tasks, accepted, strict=True):
            if item.created:
                queue = new.task.options.queue if new.task.options else None
                self.listeners.emit(EventName.ENQUEUED, task_id=item.id, task_name=new.task.name, queue=queue)

    # --- results ------------------------------------------------------------------------------------------------------

    async def get_result(self, task_id: str, timeout: float | None = None) -> Result | None:
        """Return a task's result as it is now, or wait up to `timeout` seconds for it.

        None means: the task is unknown, or has not finished. Raises `SerializationError` when the value cannot be
        decoded.
        """
        seconds: object = timeout
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= 0):
            raise ValidationError(f"timeout is a number of seconds, zero or more, not {timeout!r}")
        await self.connect()
        result = await self.backend.wait_for_result(str(task_id), timeout or 0.0)
        if result is None or result.payload is None:
            return result
        return dataclasses.replace(result, value=self.deserialize_result(result))

    def deserialize_result(self, result: Result) -> Any:
        """Return the value of a result as a store keeps it."""
        if result.payload is None:
            return result.value
        return self.serializer.decode_result(result.task_id, result.payload)

    async def get_task(self, task_id: str) -> Task | None:
        """Return a task as the store knows it now, with its progress; None if it is unknown."""
        await self.connect()
        return await self.backend.get_task(str(task_id))

    async def cancel(self, task_id: str) -> Cancelled:
        """End a queued task at once, ask a running one to stop, and say which it was (or that it had finished)."""
        await self.connect()
        (answer,) = await self.backend.cancel_tasks([str(task_id)])
        return answer


class ConfiguredQueue:
    """A queue with options for what is enqueued through it; made by `TaskQueue.options`, and good for many calls."""

    __slots__ = ("_last", "_queue", "_values")

    def __init__(self, queue: TaskQueue, values: Mapping[str, Any]) -> None:
        self._queue = queue
        self._values = values
        self._last: tuple[Callable[..., Any], Known, Plan] | None = None

    @overload
    async def enqueue(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[R]: ...
    @overload
    async def enqueue(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    async def enqueue(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """As `TaskQueue.enqueue`, with these options; every keyword argument is the function's own."""
        return await self._queue._enqueue(*self._planned(function), function, args, kwargs)

    async def enqueue_many(
        self, function: Callable[..., Any], calls: Iterable[Sequence[Any] | Mapping[str, Any]]
    ) -> list[TaskHandle[Any]]:
        """As `TaskQueue.enqueue_many`, with these options."""
        return await self._queue._enqueue_many(*self._planned(function), function, calls)

    def _planned(self, function: Callable[..., Any]) -> tuple[Known, Plan]:
        if self._last is None or self._last[0] is not function:
            calls = self._queue._calls
            self._last = (function, calls.known(function), calls.plan(function, self._values))
        return self._last[1:]


def _arguments(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if type(call) is tuple:
        return call, {}
    if isinstance(call, Mapping):
        return (), dict(call)
    if not isinstance(call, (tuple, list)):
        raise ValidationError(f"each call is a tuple of arguments, or a dict of keyword arguments, not {call!r}")
    return tuple(call), {}
