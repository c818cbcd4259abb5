"""Tasks, results and options as columns, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

from sitq.backends._options import options_from, options_text
from sitq.backends._view import clean, expired_result
from sitq.core import DEFAULT_OPTIONS, Reason, ReservedTask, Result, Status, Task, WorkerInfo
from sitq.exceptions import ValidationError

__all__ = [
    "RESERVED_COLUMNS", "RESULT_COLUMNS", "RESULT_TYPES", "STATUSES", "STATUS_CODES", "TAKEN_COLUMNS", "TASK_COLUMNS",
    "NewRow", "columns", "new_row", "reserved_from", "result_from", "result_set", "result_values", "task_from",
]  # fmt: skip

NewRow = tuple[Any, ...]
T = TypeVar("T", bound=Task)
STATUSES = (Status.QUEUED, Status.RUNNING, Status.COMPLETED, Status.FAILED)
STATUS_CODES: Mapping[Status, int] = {status: code for code, status in enumerate(STATUSES)}


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Turn rows into columns, for `unnest`."""
    return [list(column) for column in zip(*rows, strict=True)]


# --- tasks ------------------------------------------------------------------------------------------------------------


def new_row(task: Task) -> NewRow:
    """Return the values for a new task: id, queue, priority, created_at, eta, name, options, expires, retention, unique
    key, its seconds, payload. Raises `ValidationError` for what no row can hold.
    """  # noqa: D205
    options = task.options
    if options is None or options is DEFAULT_OPTIONS or options == DEFAULT_OPTIONS:
        return (
            task.id, "default", 0, task.created_at, task.eta, task.name, None, None, None, None, None, task.payload,
        )  # fmt: skip
    if not 0 <= options.priority <= 9:
        raise ValidationError(f"a priority is a number from 0 to 9, not {options.priority!r}")
    return (
        task.id, options.queue, options.priority, task.created_at, task.eta, task.name, options_text(options),
        options.expires_at, options.retention, options.unique, options.unique_for, task.payload,
    )  # fmt: skip


RESERVED_COLUMNS = (
    "id, name, queue, priority, options, created_at, eta, attempt, crashes, solo_crashes, fence, cancel_requested, "
    "progress, reason"
)
"""What `reserved_from` reads of an answer, followed by the payload and the time in seconds since 1970.

What all rows share is not in them, and the time is a number: the driver takes 1.4 us for what was left out, of 3.0 us a
row. So is `due` where it is no later than `created_at`.
"""
TAKEN_COLUMNS = ", ".join(f"k.{name}" for name in RESERVED_COLUMNS.split(", ")).replace(
    "k.eta", "CASE WHEN k.due > k.created_at THEN k.due END AS eta"
)
"""`RESERVED_COLUMNS` of a table `k`."""
TASK_COLUMNS = f"{TAKEN_COLUMNS}, k.status, k.worker_id, k.lease_until"
"""What `task_from` reads, followed by whether it expired unseen, and the payload."""


def task_from(row: Sequence[Any]) -> Task:
    """Return the task in a row of `TASK_COLUMNS`, "expired" and payload."""
    *_, status, worker_id, lease_until, is_expired, payload = row
    task = _fill(Task, row, payload)
    task.status, task.worker_id, task.lease_expires_at = STATUSES[status], worker_id, lease_until
    if is_expired:
        task.status, task.reason = Status.FAILED, Reason.EXPIRED
    return task


def reserved_from(row: Sequence[Any], worker: WorkerInfo) -> ReservedTask:
    """Return the task in a row of `RESERVED_COLUMNS`, payload, time and anything, as `worker` has it now."""
    task = _fill(ReservedTask, row, row[14])
    task.status, task.worker_id = Status.RUNNING, worker.id
    task.reserved_at, task.lease_expires_at = _term(row[15], worker.lease)
    return task


def _fill(kind: type[T], row: Sequence[Any], payload: bytes | None) -> T:
    """Make a task of a row that begins with `RESERVED_COLUMNS`."""
    (
        task_id, name, queue, priority, options, created, eta, attempt, crashes, solo_crashes, fence,
        cancel_requested, progress, reason, *_,
    ) = row  # fmt: skip
    return kind(
        id=task_id,
        name=name,
        payload=payload,
        options=options_from(queue, priority, options),
        created_at=created,
        eta=eta,
        attempt=attempt,
        crashes=crashes,
        solo_crashes=solo_crashes,
        fence=fence or None,
        cancel_requested=cancel_requested,
        progress=None if progress is None else json.loads(progress),
        reason=reason,
    )


@lru_cache(maxsize=16)  # what is reserved together begins and ends together
def _term(now: float, lease: float) -> tuple[datetime, datetime]:
    reserved_at = datetime.fromtimestamp(now, UTC)
    return reserved_at, reserved_at + timedelta(seconds=lease)


# --- results ----------------------------------------------------------------------------------------------------------

RESULT_COLUMNS = "outcome, result, error, traceback, reason, attempts, enqueued_at, started_at, finished_at"
RESULT_TYPES = ("text", "bytea", "text", "text", "text", "int", *["double precision"] * 3)
"""Of what `result_values` returns. Moments are seconds since 1970, which the driver encodes in a fifth of the time."""


def result_set(values: Iterable[str]) -> str:
    """Return what sets `RESULT_COLUMNS` to SQL expressions of `RESULT_TYPES`."""
    return ", ".join(
        f"{name} = to_timestamp({value})" if name.endswith("_at") else f"{name} = {value}"
        for name, value in zip(RESULT_COLUMNS.split(", "), values, strict=True)
    )


def result_values(result: Result | None) -> tuple[Any, ...]:
    """Return the values of `RESULT_COLUMNS`, as `RESULT_TYPES`."""
    if result is None:
        return (None,) * 9
    return (
        result.status, result.payload, clean(result.error), clean(result.traceback), clean(result.reason),
        result.attempts, _seconds(result.enqueued_at), _seconds(result.started_at), _seconds(result.finished_at),
    )  # fmt: skip


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def result_from(row: Sequence[Any]) -> Result | None:
    """Return the result in a row of `RESULT_COLUMNS` and what `task_from` reads, if there is one."""
    outcome, payload, error, traceback, reason, attempts, enqueued, started, finished = row[:9]
    if outcome is None or (reason == Reason.EXPIRED and error is None):
        task = task_from(row[9:])
        return expired_result(task) if task.reason == Reason.EXPIRED and task.status == Status.FAILED else None
    return Result(
        task_id=row[9], status=outcome, payload=payload, error=error, traceback=traceback, reason=reason,
        attempts=attempts, enqueued_at=enqueued, started_at=started, finished_at=finished,
    )  # fmt: skip
