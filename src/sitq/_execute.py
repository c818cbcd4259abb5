"""One reservation through named steps to an Outcome: admit, resolve, call, and then complete, defer, discard or fail.

Nothing here touches the store. The same steps run in a worker and in its child processes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from datetime import datetime
from functools import partial
from types import FunctionType
from typing import Any

from sitq._processes import CannotStartError, ChildDiedError, ProcessPool
from sitq._threads import Returned, ThreadPool
from sitq.core import CRASHED, DEFAULT_OPTIONS, Outcome, Reason, ReservedTask, Result, utcnow
from sitq.current import CurrentTask, _current
from sitq.exceptions import Defer, Discard, PayloadTooLargeError, SerializationError, UnresolvableError
from sitq.functions import TaskSettings, registered, settings_of
from sitq.queue import TaskQueue
from sitq.retry import backoff, quarantined, retry_delay, unresolvable_delay
from sitq.serialization import Call, Serializer

__all__ = ["Executor", "Run"]

logger = logging.getLogger("sitq")

_NO_SETTINGS = TaskSettings()
_NO_CHILD_DELAY = 5.0  # seconds
_LONGEST_REASON = 500  # characters
_LONGEST_ERROR = 10_000
_LONGEST_TRACEBACK = 100_000


class Run:
    """One reservation in a worker's hands, from reserve to settle."""

    __slots__ = (
        "current",
        "error",
        "in_thread",
        "lease_until",
        "options",
        "published",
        "reserved",
        "reserved_at",
        "settling",
        "started",
        "started_at",
        "stop_reason",
        "task",
    )

    def __init__(self, reserved: ReservedTask, reserved_at: float, lease: float) -> None:
        self.reserved = reserved
        self.options = reserved.options or DEFAULT_OPTIONS
        self.reserved_at = reserved_at  # monotonic, from before the request, as is the lease's end
        self.lease_until = reserved_at + lease
        self.task: asyncio.Task[None] | None = None
        self.started: float | None = None
        self.started_at: datetime | None = None
        self.current: CurrentTask | None = None
        self.stop_reason: str | None = None
        self.in_thread = False
        self.settling = False
        self.published: Any = None
        self.error: BaseException | None = None

    def begin_again(self) -> None:
        """Forget the last attempt: the task will run once more under the same reservation."""
        self.task = self.current = self.error = self.started = self.started_at = None
        self.settling = False

    def unpublished(self) -> Any:
        """Return the progress the store has not seen yet, or None."""
        current = self.current  # read once: the heartbeat's thread asks as well
        value = current.progress_value if current is not None else None
        return None if value is self.published else value

    def stop(self, reason: str) -> None:
        """Make the running call end: `reason` is "cancelled", "lost" or "interrupted"; the first one counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            if self.current is not None:
                self.current.cancelled = True
            if self.task is not None and self.started is not None:
                self.task.cancel()


class Executor:
    """Runs calls for one worker: on the event loop, in its threads, or in its child processes if it may have some."""

    def __init__(
        self,
        queue: TaskQueue,
        serializer: Serializer,
        state: Any = None,
        *,
        threads: ThreadPool | None = None,
        processes: ProcessPool | None = None,
    ) -> None:
        self.threads = threads or ThreadPool()
        self.on_progress: Callable[[Any], None] | None = None
        self._queue = queue
        self._serializer = serializer
        self._state = state
        self._processes = processes

    async def close(self) -> None:
        """Send idle threads home, and end all child processes."""
        self.threads.close()
        if self._processes is not None:
            await self._processes.close()

    async def execute(self, run: Run) -> Outcome | None:
        """Take one reservation through the steps; None when there is nothing to tell the store: the lease is lost."""
        run.started, run.started_at = time.monotonic(), utcnow()
        settings = _NO_SETTINGS
        try:
            refused = self.admit(run)
            if refused is not None:
                return refused
            if self._processes is not None and _needs_a_process(run, self._processes):
                settings = _settings_by_name(run.reserved)
                return await self.hand_over(run, self._processes)
            call = self.resolve(run)
            settings = settings_of(call.function)
            return self.complete(run, await self.call(run, call))
        except Defer as wish:
            reason = wish.reason and _utf8(wish.reason)[:_LONGEST_REASON]
            return Outcome.released(run.reserved.id, run.reserved.fence, wish.delay, reason)
        except Discard as wish:
            return self.fail(run, Reason.DISCARDED, _utf8(wish.reason) or "discarded by the task")
        except _Undecodable as verdict:
            return self.undecodable(run, verdict.cause)
        except asyncio.CancelledError as error:
            return self.stopped(run) if run.stop_reason else self.retry_or_fail(run, error, settings)
        except _TimedOut as error:
            return self.retry_or_fail(run, error, settings, Reason.TIMEOUT)
        except GeneratorExit:  # the event loop is being torn down
            raise
        except BaseException as error:  # noqa: BLE001 (whatever a task raises, the worker goes on)
            return self.retry_or_fail(run, error, settings)

    # --- the steps ----------------------------------------------------------------------------------------------------

    def admit(self, run: Run) -> Outcome | None:
        """Refuse what should not start: asked to stop meanwhile, expired, or a task that keeps crashing."""
        task, expires_at = run.reserved, run.options.expires_at
        if run.stop_reason is not None:
            return self.stopped(run)
        if task.cancel_requested:
            reason, why = Reason.CANCELLED, "cancelled"
        elif expires_at is not None and run.started_at is not None and expires_at <= run.started_at:
            reason, why = Reason.EXPIRED, f"expired at {expires_at.isoformat()} before it was started"
        elif quarantined(task.crashes, task.solo_crashes):
            reason, why = Reason.QUARANTINED, f"ended its process {task.crashes} times"
        else:
            return None
        run.started_at = None
        return self.fail(run, reason, why)

    def resolve(self, run: Run) -> Call:
        """Return the call: as the store handed it over, or decoded."""
        task = run.reserved
        if task.function is not None:
            return Call(task.function, task.args, task.kwargs)
        if task.payload is None:
            raise _Undecodable(SerializationError("the store returned neither a function nor a payload"))
        try:
            return self._serializer.decode_call(task.id, task.name, task.payload)
        except SerializationError as error:
            raise _Undecodable(error) from error

    async def hand_over(self, run: Run, processes: ProcessPool) -> Outcome | None:
        """Have a child process take the remaining steps; if it dies in them, that is the task's own crash."""
        task = run.reserved
        run.current = CurrentTask(task, self._queue, None)
        try:
            return await processes.run(run)
        except TimeoutError:
            raise _TimedOut(f"took longer than {run.options.timeout:g} seconds") from None
        except SerializationError as error:
            return self.fail(run, Reason.ERROR, _describe(error), error)
        except CannotStartError as error:
            logger.error("task %s (%s) waits: %s", task.id, task.name, error)  # noqa: TRY400 (it has the traceback)
            return Outcome.released(task.id, task.fence, _NO_CHILD_DELAY, "its child process could not start")
        except ChildDiedError as error:
            run.error = error
            logger.warning("task %s (%s) crashed: %s", task.id, task.name, error)
            return Outcome.deferred(task.id, task.fence, 0.01 + backoff(task.crashes + 1, 0.1, 5.0), CRASHED)

    async def call(self, run: Run, call: Call) -> Any:
        """Call the function, inside the middleware and under the timeout."""
        run.current = current = CurrentTask(run.reserved, self._queue, self._state, self.on_progress)
        _current.set(current)
        if self._queue.contextvars:
            self._set_contextvars(current)
        layers = self._queue.middleware
        if run.options.timeout is None and not layers:
            return await self.invoke(run, call)
        innermost = partial(self.invoke, run, call)
        if run.options.timeout is None:
            return await _wrapped(layers, current, innermost)
        limit = asyncio.timeout(run.options.timeout)
        try:
            async with limit:
                return await _wrapped(layers, current, innermost)
        except TimeoutError as error:
            if limit.expired():
                raise _TimedOut(f"took longer than {run.options.timeout:g} seconds") from error
            raise

    async def invoke(self, run: Run, call: Call) -> Any:
        """Call the function where it belongs: async on the loop, plain in a thread."""
        function, args, kwargs = call
        if _is_async(function):
            return await function(*args, **kwargs)
        value = await self._in_thread(run, partial(function, *args, **kwargs))
        return await value if inspect.iscoroutine(value) else value

    async def _in_thread(self, run: Run, function: Callable[[], Any]) -> Any:
        """Run a plain function in a thread, and stay until it returns even when the wait was called off.

        A timed-out or cancelled thread goes on working: its slot and its lease stay taken, or another worker would run
        the task beside it.
        """
        run.in_thread = True
        future = self.threads.submit(copy_context(), function)
        called_off: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                called_off = called_off or error
                if run.current is not None:
                    run.current.cancelled = True
        run.in_thread = False
        if called_off is not None:
            raise called_off
        returned: Returned = future.result()
        if returned.error is not None:
            raise returned.error
        return returned.value

    def _set_contextvars(self, current: CurrentTask) -> None:
        for name, value in current.context.get("contextvars", {}).items():
            variable = self._queue.contextvars.get(name)
            if variable is not None:
                variable.set(value)

    # --- the outcomes -------------------------------------------------------------------------------------------------

    def complete(self, run: Run, value: Any) -> Outcome:
        """Encode the value; a value that cannot be stored fails the task."""
        task = run.reserved
        payload = self._serializer.encode_result(task.id, value)
        limit = self._queue.max_payload
        if len(payload) > limit:
            raise PayloadTooLargeError(
                f"the result takes {len(payload):,} bytes, over the limit of {limit:,}: return a reference, or raise "
                "TaskQueue(max_payload=…)"
            )
        result = Result(
            task_id=task.id,
            payload=payload,
            attempts=max(task.attempt, 1),
            enqueued_at=task.created_at,
            started_at=run.started_at,
            finished_at=utcnow(),
        )
        return Outcome.completed(task.id, task.fence, result)

    def retry_or_fail(
        self, run: Run, error: BaseException, settings: TaskSettings, reason: Reason = Reason.ERROR
    ) -> Outcome:
        """Defer the task if its retry rules say so, or let it fail."""
        task = run.reserved
        retry = run.options.retry or settings.options.get("retry")
        delay = retry_delay(error, max(task.attempt, 1), retry, settings)
        run.error = error
        if delay is not None:
            return Outcome.deferred(task.id, task.fence, delay, f"retry after {_describe(error)}"[:_LONGEST_REASON])
        return self.fail(run, reason, _describe(error), error)

    def undecodable(self, run: Run, error: SerializationError) -> Outcome:
        """Fail the task; but one whose function is only not deployed here yet is given back, for up to a day."""
        task = run.reserved
        wait = unresolvable_delay(task.reason, utcnow()) if isinstance(error, UnresolvableError) else None
        if wait is None:
            return self.fail(run, Reason.UNDECODABLE, str(error), error)
        run.error = error
        return Outcome.released(task.id, task.fence, *wait)

    def stopped(self, run: Run) -> Outcome | None:
        """Say what becomes of a task that was made to stop."""
        if run.stop_reason == "lost":
            return None
        if run.stop_reason == "cancelled":
            return self.fail(run, Reason.CANCELLED, "cancelled while it was running")
        return Outcome.released(run.reserved.id, run.reserved.fence)

    def fail(self, run: Run, reason: Reason, error: str, cause: BaseException | None = None) -> Outcome:
        """End the task as failed; a reservation that was refused before it started is no attempt."""
        task = run.reserved
        result = Result(
            task_id=task.id,
            status="failed",
            error=_shortened(error, _LONGEST_ERROR),
            traceback=_shortened(_format(cause), _LONGEST_TRACEBACK) if cause is not None else None,
            reason=reason,
            attempts=max(task.attempt, 1) - (run.started_at is None),
            enqueued_at=task.created_at,
            started_at=run.started_at,
            finished_at=utcnow(),
        )
        return Outcome.failed(task.id, task.fence, result)


def _settings_by_name(task: ReservedTask) -> TaskSettings:
    """Return the retry rules of a task that is not decoded here, if its function is known here at all."""
    function = task.function or registered(task.name)
    return _NO_SETTINGS if function is None else settings_of(function)


def _needs_a_process(run: Run, processes: ProcessPool) -> bool:
    """Say whether a task must not run in the worker's own process: it says so itself, or it may have ended one."""
    return run.options.executor == "process" or (run.reserved.crashes > 0 and processes.can_take(run.reserved))


def _is_async(function: Callable[..., Any]) -> bool:
    """Say whether calling `function` makes a coroutine; what nearly all tasks are is found out without `inspect`."""
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


class _Undecodable(Exception):  # noqa: N818 (a step's verdict; `cause` is the error)
    """The payload cannot become a call; if the cause is an `UnresolvableError`, not in this process."""

    def __init__(self, cause: SerializationError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _TimedOut(TimeoutError):  # noqa: N818 (its users see a TimeoutError)
    """The attempt took longer than the task's timeout."""


def _wrapped(
    layers: tuple[Callable[..., Awaitable[Any]], ...], current: CurrentTask, innermost: Callable[[], Awaitable[Any]]
) -> Awaitable[Any]:
    call = innermost
    for layer in reversed(layers):
        call = partial(layer, current, call)
    return call()


def _describe(error: BaseException) -> str:
    name = "TimeoutError" if isinstance(error, _TimedOut) else type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (the text of an exception is the task's own code)
        text = "(its text could not be made)"
    return _utf8(f"{name}: {text}") if text else name


def _utf8(text: str) -> str:
    """Return a text that any store and terminal can take: the name of a file may hold half a character."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shortened(text: str, longest: int) -> str:
    """Return a text without its middle if it is longer: what begins it says what, and what ends it says why."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def _format(error: BaseException) -> str:
    """Return the traceback without sitq's own frames at its top, where nothing is to be learnt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_globals.get("__name__") in _OWN_MODULES:
        trace = trace.tb_next
    return _utf8("".join(traceback.format_exception(type(error), error, trace)))


_OWN_MODULES = frozenset({__name__, "sitq._threads"})
