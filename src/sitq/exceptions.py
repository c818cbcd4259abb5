"""Every error sitq raises. Each message says what to do next.

    SitqError
    ├── ValidationError (also ValueError)      what was handed in cannot be right
    ├── BackendError                           the store could not do it; the driver's error is the cause
    │   ├── TaskNotFoundError                  no task has this id
    │   ├── InvalidTransitionError             a task in this status cannot get that one
    │   ├── UnsupportedError                   the store lacks the capability
    │   ├── PartialEnqueueError                some tasks of a bulk were stored, the rest not
    │   └── SchemaError                        the store holds something this version cannot use
    ├── SerializationError                     a call or value could not be encoded or decoded
    │   ├── UnresolvableError                  the function's name leads nowhere in this process
    │   ├── PayloadTooLargeError               over the limit of the queue
    │   └── SignatureError                     a payload was not signed by a known key
    ├── TaskFailedError                        the awaited task ended as failed
    ├── ResultTimeoutError (also TimeoutError) no result in the time given
    └── WorkerError                            the worker cannot start or go on

`Defer` and `Discard` are not errors but what a task raises to be run again later, or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sitq.core import Result

__all__ = [
    "BackendError",
    "Defer",
    "Discard",
    "InvalidTransitionError",
    "PartialEnqueueError",
    "PayloadTooLargeError",
    "ResultTimeoutError",
    "SchemaError",
    "SerializationError",
    "SignatureError",
    "SitqError",
    "TaskFailedError",
    "TaskNotFoundError",
    "UnresolvableError",
    "UnsupportedError",
    "ValidationError",
    "WorkerError",
]


LONGEST = 100 * 365.25 * 86_400.0
"""The longest delay, in seconds: further off no calendar and no store's clock can be trusted to agree."""


class SitqError(Exception):
    """The root of all errors of sitq."""


class ValidationError(SitqError, ValueError):
    """What was handed in cannot be right; nothing was stored."""


class BackendError(SitqError):
    """The store could not do what was asked; the driver's error, if any, is the `__cause__`."""


class TaskNotFoundError(BackendError):
    """No task has this id."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"no task has the id {task_id!r}: check the id, or whether its retention has passed")
        self.task_id = task_id

    def __reduce__(self) -> tuple[type[TaskNotFoundError], tuple[str]]:
        return type(self), (self.task_id,)


class InvalidTransitionError(BackendError):
    """A task in this status cannot be given that one."""


class UnsupportedError(BackendError):
    """The store lacks a capability; the message names it."""


class PartialEnqueueError(BackendError):
    """A bulk enqueue stopped in the middle: `accepted` has the handles of what is stored."""

    def __init__(self, accepted: Sequence[str]) -> None:
        super().__init__(f"only the first {len(accepted)} tasks were stored: enqueue the rest again (see the cause)")
        self.accepted = list(accepted)

    def __reduce__(self) -> tuple[type[PartialEnqueueError], tuple[list[str]]]:
        return type(self), (self.accepted,)


class SchemaError(BackendError):
    """The store holds something this version of sitq cannot use; nothing was changed."""


class SerializationError(SitqError):
    """A call or a value could not be encoded or decoded."""


class UnresolvableError(SerializationError):
    """The name of a function leads nowhere in this process: perhaps not deployed here yet."""


class PayloadTooLargeError(SerializationError):
    """A call or a value is larger than the queue's limit."""


class SignatureError(SerializationError):
    """A payload was not signed by a known key, or was moved from where it was signed for."""


class TaskFailedError(SitqError):
    """The awaited task ended as failed; `result` has the error, the traceback and the reason."""

    def __init__(self, result: Result) -> None:
        detail = f"\n\n{result.traceback}" if result.traceback else ""
        super().__init__(f"task {result.task_id} failed ({result.reason}): {result.error}{detail}")
        self.result = result

    def __reduce__(self) -> tuple[type[TaskFailedError], tuple[Result]]:
        return type(self), (self.result,)


class ResultTimeoutError(SitqError, TimeoutError):
    """No result came in the time given; the task itself goes on."""


class WorkerError(SitqError):
    """The worker cannot start, or cannot go on."""


class Defer(Exception):  # noqa: N818 (control flow, not an error)
    """Raised by a task: run me again after `delay` seconds (or a `timedelta`). It costs no attempt."""

    def __init__(self, delay: float | timedelta, reason: str | None = None) -> None:
        super().__init__(delay, reason)
        seconds: object = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if not isinstance(seconds, (int, float)) or not 0 <= seconds <= LONGEST:
            raise ValidationError(f"Defer takes a number of seconds from 0 to 100 years, or a timedelta, not {delay!r}")
        self.delay = float(seconds)
        self.reason = None if reason is None else str(reason)


class Discard(Exception):  # noqa: N818 (control flow, not an error)
    """Raised by a task: give me up, without retry; the task ends as failed with the reason `discarded`."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)
