"""The data of sitq: tasks, results, outcomes and the words for their states. No I/O, no decisions.

Times are aware UTC `datetime`s; durations are seconds (`float`). `Task` and `ReservedTask` may be changed by
whoever holds them (a backend's author writes `task.status = …`); everything else is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sitq.exceptions import LONGEST, ValidationError

__all__ = [
    "OPERATOR_MOVES",
    "Accepted",
    "Cancelled",
    "Extended",
    "Finding",
    "Held",
    "NewTask",
    "Outcome",
    "OutcomeKind",
    "Phase",
    "QueueCounts",
    "Reason",
    "ReservedTask",
    "Result",
    "Retry",
    "Status",
    "Task",
    "TaskFilter",
    "TaskOptions",
    "Verdict",
    "WorkerInfo",
    "phase_of",
    "utcnow",
]


def utcnow() -> datetime:
    """Return the current time as an aware UTC `datetime`."""
    return datetime.now(UTC)


class Status(StrEnum):
    """The store's word for a task: exactly these four, in every store."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


OPERATOR_MOVES: Mapping[str, frozenset[str]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.COMPLETED, Status.FAILED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.COMPLETED, Status.FAILED}),
    Status.COMPLETED: frozenset({Status.QUEUED}),
    Status.FAILED: frozenset({Status.QUEUED}),
}
"""From each status, the statuses `Backend.update_task_status` may set. The same status again changes nothing."""


class Phase(StrEnum):
    """The finer word people see, derived from a task by `phase_of`; never stored."""

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    STALLED = "stalled"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"


class Reason(StrEnum):
    """Why a task is `failed`."""

    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DISCARDED = "discarded"
    UNDECODABLE = "undecodable"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a task may be attempted, and the backoff between attempts, in seconds.

    Plain data: the delay before attempt n + 1 is drawn evenly from 0 to `min(cap, base * 2 ** (n - 1))`. Rules by
    exception type belong to `@task`. Raises `ValidationError` for less than one attempt, and for a `base` or `cap` that
    is not from 0 to 100 years.
    """

    max_attempts: int = 3
    base: float = 1.0
    cap: float = 300.0

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or self.max_attempts < 1:
            raise ValidationError(f"max_attempts of a retry is a whole number, at least 1, not {self.max_attempts!r}")
        seconds: dict[str, Any] = {"base": self.base, "cap": self.cap}
        for name, value in seconds.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST:
                raise ValidationError(f"{name} of a retry is a number of seconds from 0 to 100 years, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How a task is to be run: plain data beside the call, stored by the backend.

    `priority` runs from 0 to 9, higher first. `expires_at` is the moment after which a task that has not started
    is no longer wanted. `timeout` bounds one attempt in seconds. `unique` names a key only one live task may hold;
    `unique_for` holds it for that many seconds from the enqueue, past the task's end. `executor` is `"auto"`,
    `"thread"` or `"process"`. `retention` is how many seconds the finished task is kept (`None`: a day when it
    completed, seven when it failed). `context` is data for middleware.
    """

    queue: str = "default"
    priority: int = 0
    expires_at: datetime | None = None
    timeout: float | None = None
    retry: Retry | None = None
    unique: str | None = None
    unique_for: float | None = None
    executor: str = "auto"
    retention: float | None = None
    context: Mapping[str, Any] = field(default_factory=dict)


DEFAULT_OPTIONS = TaskOptions()
"""What most tasks have. One object, so that whoever looks for it can ask with `is` first."""


@dataclass(slots=True, kw_only=True)
class Task:
    """One unit of work as the store knows it.

    `name` is `module:qualname` of the function, `payload` the encoded call. A task does not start before `eta`.
    `attempt` counts reservations, `crashes` the lost leases among them, `solo_crashes` those that ended the child
    process the task had to itself. `fence` grows at every reserve, takeover and operator write. `reason` says why
    a failed task failed, or why a queued one waits. `progress` is what the task last reported.
    """

    id: str
    status: str = Status.QUEUED
    name: str = ""
    payload: bytes | None = None
    options: TaskOptions | None = None
    created_at: datetime = field(default_factory=utcnow)
    eta: datetime | None = None
    attempt: int = 0
    crashes: int = 0
    solo_crashes: int = 0
    fence: int | None = None
    worker_id: str | None = None
    lease_expires_at: datetime | None = None
    cancel_requested: bool = False
    progress: Any = None
    reason: str | None = None


@dataclass(slots=True, kw_only=True)
class ReservedTask(Task):
    """A task in the hands of a worker.

    `ReservedTask(id=…, function=…, args=…, kwargs=…)` is all a store of Python objects needs; a store of bytes fills
    `payload`, `attempt` and `fence`, and the worker decodes the call.
    """

    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    reserved_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a task: `status` is `"success"` or `"failed"`.

    `payload` is the encoded value as stored, `value` the decoded one, filled by `TaskQueue.get_result`. `error` is the
    last line of `traceback`. `attempts` counts the runs, `started_at` is the start of the last of them.
    """

    task_id: str
    status: str = "success"
    payload: bytes | None = None
    value: Any = None
    error: str | None = None
    traceback: str | None = None
    reason: str | None = None
    attempts: int = 1
    enqueued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class OutcomeKind(StrEnum):
    """What a worker decided about a reserved task."""

    COMPLETED = "completed"
    FAILED = "failed"
    DEFERRED = "deferred"
    RELEASED = "released"


CRASHED = "crashed"
"""The `reason` of a deferred outcome that adds one to the task's `crashes` and `solo_crashes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A worker's decision about one reservation, handed to `Backend.settle`; built by the four class methods.

    `delay` is in seconds from the moment the store applies it, by the store's own clock.
    """

    task_id: str
    fence: int | None
    kind: OutcomeKind
    result: Result | None = None
    delay: float = 0.0
    reason: str | None = None

    @classmethod
    def completed(cls, task_id: str, fence: int | None, result: Result) -> Outcome:
        """The call returned; `result` holds its value."""
        return cls(task_id=task_id, fence=fence, kind=OutcomeKind.COMPLETED, result=result)

    @classmethod
    def failed(cls, task_id: str, fence: int | None, result: Result) -> Outcome:
        """The task failed for good; `result.reason` says why."""
        return cls(task_id=task_id, fence=fence, kind=OutcomeKind.FAILED, result=result, reason=result.reason)

    @classmethod
    def deferred(cls, task_id: str, fence: int | None, delay: float, reason: str | None = None) -> Outcome:
        """Run it again after `delay` seconds; the attempt counts. `reason` is kept on the waiting task."""
        return cls(task_id=task_id, fence=fence, kind=OutcomeKind.DEFERRED, delay=delay, reason=reason)

    @classmethod
    def released(cls, task_id: str, fence: int | None, delay: float = 0.0, reason: str | None = None) -> Outcome:
        """Give it back, to be run after `delay` seconds; the attempt does not count."""
        return cls(task_id=task_id, fence=fence, kind=OutcomeKind.RELEASED, delay=delay, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task on its way into a store, with its call for stores that keep Python objects."""

    task: Task
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The store's answer to a new task: `created` is False when its id or unique key was there, held by `id`."""

    id: str
    created: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker as the store sees it. `id` is random per incarnation; `queues` is None for all; `lease` is in seconds.

    `seen_at` is filled by `Backend.list_workers`: when the worker was last heard of.
    """

    id: str
    queues: tuple[str, ...] | None = None
    lease: float = 30.0
    host: str = ""
    pid: int = 0
    started_at: datetime = field(default_factory=utcnow)
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A reservation a worker still holds, with the progress to publish (None: nothing new).

    `state` is `"running"`, or `"waiting"` while it has not started.
    """

    id: str
    fence: int | None = None
    progress: Any = None
    state: str = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """The store's answer to a heartbeat: ids whose lease is lost, and ids somebody asked to cancel."""

    lost: frozenset[str] = frozenset()
    cancelled: frozenset[str] = frozenset()


class Cancelled(StrEnum):
    """What a request to cancel did to one task."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    FINISHED = "finished"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks to list or purge; every field that is not None must match.

    `since` and `before` bound `created_at`. Tasks come newest first; `after` is the id of the last task of the page
    before; when the store knows it no more, it raises `TaskNotFoundError`.
    """

    phase: str | None = None
    queue: str | None = None
    name: str | None = None
    worker_id: str | None = None
    since: datetime | None = None
    before: datetime | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """One queue in numbers: tasks by phase, whether it is paused, and since when its oldest ready task is due."""

    queue: str
    phases: Mapping[str, int] = field(default_factory=dict)
    paused: bool = False
    oldest_ready: datetime | None = None


class Verdict(StrEnum):
    """What to think of a `Finding`."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a store says of itself (`Backend.diagnose`): its name, its value in words, and what to do about it.

    `number` is the value as a number where it is one: bytes, seconds, a version. `advice` is for what is not ok.
    """

    name: str
    value: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
    number: float | None = None


_FAILED_PHASES: Mapping[str | None, Phase] = {
    Reason.CANCELLED: Phase.CANCELLED,
    Reason.EXPIRED: Phase.EXPIRED,
    Reason.QUARANTINED: Phase.QUARANTINED,
}


def phase_of(task: Task, now: datetime) -> Phase:
    """Return the phase of `task` at `now`."""
    if task.status == Status.COMPLETED:
        return Phase.COMPLETED
    if task.status == Status.FAILED:
        return _FAILED_PHASES.get(task.reason, Phase.FAILED)
    if task.status == Status.RUNNING:
        stalled = task.lease_expires_at is not None and task.lease_expires_at <= now
        return Phase.STALLED if stalled else Phase.RUNNING
    expires_at = task.options.expires_at if task.options else None
    if expires_at is not None and expires_at <= now:
        return Phase.EXPIRED
    if task.eta is not None and task.eta > now:
        return Phase.RETRYING if task.attempt else Phase.SCHEDULED
    return Phase.READY
