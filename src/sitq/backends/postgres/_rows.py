"""Tasks, results and options as columns, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sitq.backends._options import options_from, options_text
from sitq.backends._view import clean, expired_result
from sitq.core import DEFAULT_OPTIONS, Reason, ReservedTask, Result, Status, Task
from sitq.exceptions import ValidationError

__all__ = [
    "RESULT_COLUMNS", "RESULT_TYPES", "STATUSES", "STATUS_CODES", "TASK_COLUMNS", "NewRow", "columns", "new_row",
    "reserved_from", "result_from", "result_values", "task_from",
]  # fmt: skip

NewRow = tuple[Any, ...]
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


TASK_COLUMNS = """k.id, k.status, k.name, k.queue, k.priority, k.options, k.created_at, k.due, k.attempt, k.crashes,
    k.solo_crashes, k.fence, k.worker_id, k.lease_until, k.cancel_requested, k.progress, k.reason, k.reserved_at"""
"""What `task_from` reads, followed by whether it expired unseen, and the payload."""


def task_from(row: Sequence[Any]) -> Task:
    """Return the task in a row of `TASK_COLUMNS`, "expired" and payload."""
    task = Task(**_task_fields(row))
    if row[18]:
        task.status, task.reason = Status.FAILED, Reason.EXPIRED
    return task


def reserved_from(row: Sequence[Any]) -> ReservedTask:
    """Return the reserved task in a row of `TASK_COLUMNS`, anything and payload."""
    return ReservedTask(**_task_fields(row), reserved_at=row[17])


def _task_fields(row: Sequence[Any]) -> dict[str, Any]:
    (
        task_id, status, name, queue, priority, options, created, due, attempt, crashes, solo_crashes, fence, worker_id,
        lease_until, cancel_requested, progress, reason, _reserved, _expired, payload, *_,
    ) = row  # fmt: skip
    return {
        "id": task_id,
        "status": STATUSES[status],
        "name": name,
        "payload": payload,
        "options": options_from(queue, priority, options),
        "created_at": created,
        "eta": due if due > created else None,
        "attempt": attempt,
        "crashes": crashes,
        "solo_crashes": solo_crashes,
        "fence": fence or None,
        "worker_id": worker_id,
        "lease_expires_at": lease_until,
        "cancel_requested": cancel_requested,
        "progress": None if progress is None else json.loads(progress),
        "reason": reason,
    }


# --- results ----------------------------------------------------------------------------------------------------------

RESULT_COLUMNS = "outcome, result, error, traceback, reason, attempts, enqueued_at, started_at, finished_at"
RESULT_TYPES = ("text", "bytea", "text", "text", "text", "int", "timestamptz", "timestamptz", "timestamptz")


def result_values(result: Result | None) -> tuple[Any, ...]:
    """Return the values of `RESULT_COLUMNS`."""
    if result is None:
        return (None,) * 9
    return (
        result.status, result.payload, clean(result.error), clean(result.traceback), clean(result.reason),
        result.attempts, result.enqueued_at, result.started_at, result.finished_at,
    )  # fmt: skip


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
