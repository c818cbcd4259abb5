"""Tasks, results and options as columns, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, TypeVar

from sitq.backends._options import options_from, options_text
from sitq.backends._view import clean, expired_result
from sitq.backends.sqlite._clock import Clock
from sitq.backends.sqlite._many import placeholders
from sitq.core import DEFAULT_OPTIONS, Reason, ReservedTask, Result, Status, Task, WorkerInfo
from sitq.exceptions import ValidationError

__all__ = [
    "RESERVED_COLUMNS", "RESULT_COLUMNS", "STATUSES", "STATUS_CODES", "TASK_COLUMNS", "NewRow", "insert_statement",
    "new_row", "reserved_from", "result_from", "result_values", "seconds", "task_from",
]  # fmt: skip

NewRow = tuple[Any, ...]
T = TypeVar("T", bound=Task)
STATUSES = (Status.QUEUED, Status.RUNNING, Status.COMPLETED, Status.FAILED)
STATUS_CODES: Mapping[Status, int] = {status: code for code, status in enumerate(STATUSES)}
_FIRST, _LAST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)  # in every time zone

_NEW_COLUMNS = (
    "id, queue, priority, due, created_at, name, options, expires, retention, unique_key, unique_until, payload"
)
_NEW_WIDTH = _NEW_COLUMNS.count(",") + 1


@cache
def insert_statement(count: int) -> str:
    """Return the statement that stores `count` rows of `new_row`."""
    return f"INSERT INTO sitq_tasks ({_NEW_COLUMNS}) VALUES {placeholders(_NEW_WIDTH, count)}"  # noqa: S608 (constants)


def seconds(moment: datetime | None) -> float | None:
    """Return a moment as seconds since 1970."""
    return None if moment is None else moment.timestamp()


def _moment(stamp: float | None) -> datetime | None:
    return None if stamp is None else _moment_of(stamp)


def _moment_of(stamp: float) -> datetime:
    try:
        return datetime.fromtimestamp(stamp, UTC)
    except (
        OverflowError,
        ValueError,
        OSError,
    ):  # no date is as far off: a task that never comes due is shown all the same
        return _LAST if stamp > 0 else _FIRST


_shared_moment = lru_cache(maxsize=16)(_moment_of)  # what is reserved together begins and ends together


# --- tasks ----------------------------------------------------------------------------------------------------------


def new_row(task: Task, now: float) -> NewRow:
    """Return the values of `insert_statement` for a task. Raises `ValidationError` for what no row can hold."""
    created = task.created_at.timestamp()
    due = created if task.eta is None else max(created, task.eta.timestamp())
    options = task.options
    if options is None or options is DEFAULT_OPTIONS or options == DEFAULT_OPTIONS:
        return (task.id, "default", 0, due, created, task.name, None, None, None, None, None, task.payload)
    if not 0 <= options.priority <= 9:
        raise ValidationError(f"a priority is a number from 0 to 9, not {options.priority!r}")
    unique_until = None if options.unique is None else now + (options.unique_for or 0.0)
    return (
        task.id, options.queue, options.priority, due, created, task.name, options_text(options),
        seconds(options.expires_at), options.retention, options.unique, unique_until, task.payload,
    )  # fmt: skip


_COLUMNS = """id, name, queue, priority, options, created_at, due, attempt, crashes, solo_crashes, fence,
    cancel_requested, progress, reason"""
TASK_COLUMNS = f"{_COLUMNS}, status, expires, worker_id, lease_until"
"""What `task_from` reads, followed by the payload."""
RESERVED_COLUMNS = f"{_COLUMNS}, reserved_at"
"""What `reserved_from` reads, followed by the payload."""


def task_from(row: tuple[Any, ...], clock: Clock) -> Task:
    """Return the task in a row of `TASK_COLUMNS` and payload. A queued task past its `expires` has failed."""
    *_, status, expires, worker_id, lease_until, payload = row
    task, now = _fill(Task, row, payload), clock.now()
    task.status, task.worker_id = STATUSES[status], worker_id
    if lease_until is not None:
        task.lease_expires_at = _moment_of(now - clock.lease_now() + lease_until)
    if task.status == Status.QUEUED and expires is not None and expires <= now:
        task.status, task.reason = Status.FAILED, Reason.EXPIRED
    return task


def reserved_from(row: tuple[Any, ...], worker: WorkerInfo) -> ReservedTask:
    """Return the task in a row of `RESERVED_COLUMNS`, payload and anything, as `worker` has it now."""
    reserved_at, payload = row[14:16]
    task = _fill(ReservedTask, row, payload)
    task.status, task.worker_id = Status.RUNNING, worker.id
    task.reserved_at, task.lease_expires_at = _shared_moment(reserved_at), _shared_moment(reserved_at + worker.lease)
    return task


def _fill(kind: type[T], row: tuple[Any, ...], payload: bytes | None) -> T:
    """Make a task of a row that begins with `_COLUMNS`."""
    (
        task_id, name, queue, priority, options, created, due, attempt, crashes, solo_crashes, fence,
        cancel_requested, progress, reason, *_,
    ) = row  # fmt: skip
    return kind(
        id=task_id,
        name=name,
        payload=payload,
        options=options_from(queue, priority, options),
        created_at=_moment_of(created),
        eta=_moment_of(due) if due > created else None,
        attempt=attempt,
        crashes=crashes,
        solo_crashes=solo_crashes,
        fence=fence or None,
        cancel_requested=bool(cancel_requested),
        progress=None if progress is None else json.loads(progress),
        reason=reason,
    )


# --- results --------------------------------------------------------------------------------------------------------

RESULT_COLUMNS = "outcome, result, error, traceback, reason, attempts, enqueued_at, started_at, finished_at"


def result_values(result: Result | None) -> tuple[Any, ...]:
    """Return the values of `RESULT_COLUMNS`."""
    if result is None:
        return (None,) * 9
    return (
        result.status, result.payload, clean(result.error), clean(result.traceback), clean(result.reason),
        result.attempts, seconds(result.enqueued_at), seconds(result.started_at), seconds(result.finished_at),
    )  # fmt: skip


def result_from(row: tuple[Any, ...], clock: Clock) -> Result | None:
    """Return the result in a row of `RESULT_COLUMNS`, `TASK_COLUMNS` and payload, if there is one."""
    outcome, payload, error, traceback, reason, attempts, enqueued, started, finished = row[:9]
    if outcome is None or (reason == Reason.EXPIRED and error is None):
        task = task_from(row[9:], clock)
        return expired_result(task) if task.reason == Reason.EXPIRED and task.status == Status.FAILED else None
    return Result(
        task_id=row[9], status=outcome, payload=payload, error=error, traceback=traceback, reason=reason,
        attempts=attempts, enqueued_at=_moment(enqueued), started_at=_moment(started), finished_at=_moment(finished),
    )  # fmt: skip
