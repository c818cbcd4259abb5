"""Tasks, results and options as the arguments and answers of the script.

On the server times are whole microseconds since 1970, an empty string or a missing field is None, and a fence is two
numbers: its epoch, and a number within that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sitq.backends._options import options_from, options_text
from sitq.backends._view import clean, expired_result
from sitq.core import (
    CRASHED,
    DEFAULT_OPTIONS,
    Held,
    Outcome,
    OutcomeKind,
    Reason,
    ReservedTask,
    Result,
    Status,
    Task,
    WorkerInfo,
)
from sitq.exceptions import ValidationError

__all__ = [
    "STATUSES", "STATUS_CODES", "held_arguments", "micros", "moment", "outcome_arguments", "reserved_from",
    "result_arguments", "result_from", "stamp", "task_arguments", "task_from", "worker_from", "worker_record",
]  # fmt: skip

STATUSES = (Status.QUEUED, Status.RUNNING, Status.COMPLETED, Status.FAILED)
STATUS_CODES: Mapping[Status, str] = {status: str(code) for code, status in enumerate(STATUSES)}
_BY_CODE: Mapping[bytes, Status] = {code.encode(): status for status, code in STATUS_CODES.items()}
_FENCE_BITS = 22
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_OUTCOMES = ("failed", "success")
_EXPIRED = b"x"

Row = Sequence[Any]


def stamp(when: datetime | None) -> int | None:
    """Return a moment as microseconds since 1970."""
    return None if when is None else (when - _EPOCH) // _MICROSECOND


_LAST = 253_402_300_799_000_000  # the end of the year 9999


def moment(microseconds: Any) -> datetime | None:
    """Return the moment of a stamp, as the server sends it."""
    return _EPOCH + timedelta(microseconds=min(int(microseconds), _LAST)) if microseconds else None


def micros(seconds: float) -> int:
    """Return a duration in whole microseconds."""
    return round(seconds * 1_000_000)


# --- tasks ------------------------------------------------------------------------------------------------------------


def task_arguments(task: Task) -> tuple[Any, ...]:
    """Return the arguments of `accept` for a task. Raises `ValidationError` for what cannot be stored."""
    created = max(stamp(task.created_at) or 0, 0)
    eta = "" if task.eta is None else max(stamp(task.eta) or 0, 0)
    options, payload = task.options, task.payload or b""
    if options is None or options is DEFAULT_OPTIONS or options == DEFAULT_OPTIONS:
        return (task.id, "default", 0, created, eta, task.name, "", "", "", "", "", payload)
    if not 0 <= options.priority <= 9:
        raise ValidationError(f"a priority is a number from 0 to 9, not {options.priority!r}")
    expires = "" if options.expires_at is None else stamp(options.expires_at)
    unique = "" if options.unique is None else options.unique
    retention = "" if options.retention is None else repr(float(options.retention))
    return (
        task.id, options.queue, options.priority, created, eta, task.name, options_text(options) or "", expires, unique,
        micros(options.unique_for or 0.0), retention, payload,
    )  # fmt: skip


def task_from(row: Row, now: Any) -> Task:
    """Return the task in a row that the script shows. A queued task past its `expires_at` has failed."""
    task = Task(**_fields(row))
    if task.status == Status.QUEUED and row[7] and int(row[7]) <= int(now):
        task.status, task.reason = Status.FAILED, Reason.EXPIRED
    return task


def reserved_from(row: Row) -> ReservedTask:
    """Return the reserved task in a row."""
    return ReservedTask(**_fields(row), reserved_at=moment(row[18]))


def _fields(row: Row) -> dict[str, Any]:
    (
        status, queue, priority, due, created, name, options, _expires, attempt, crashes, solo_crashes, epoch, number,
        worker_id, lease_until, cancel_requested, progress, reason, _reserved, payload, task_id,
    ) = row  # fmt: skip
    due, created = int(due), int(created)
    return {
        "id": task_id.decode(),
        "status": _BY_CODE[status],
        "name": name.decode(),
        "payload": payload or None,
        "options": options_from(queue.decode(), int(priority), options),
        "created_at": moment(created) or _EPOCH,
        "eta": moment(due) if due > created else None,
        "attempt": int(attempt or 0),
        "crashes": int(crashes or 0),
        "solo_crashes": int(solo_crashes or 0),
        "fence": (int(epoch) << _FENCE_BITS) + int(number) if epoch else None,
        "worker_id": worker_id.decode() if worker_id else None,
        "lease_expires_at": moment(lease_until),
        "cancel_requested": cancel_requested == b"1",
        "progress": json.loads(progress) if progress else None,
        "reason": reason.decode() if reason else None,
    }


def _fence(fence: int | None) -> tuple[int, int]:
    return divmod(fence or 0, 1 << _FENCE_BITS)


# --- outcomes and results ---------------------------------------------------------------------------------------------

_KINDS = {
    OutcomeKind.COMPLETED: STATUS_CODES[Status.COMPLETED],
    OutcomeKind.FAILED: STATUS_CODES[Status.FAILED],
    OutcomeKind.DEFERRED: "deferred",
    OutcomeKind.RELEASED: "released",
}


def outcome_arguments(outcome: Outcome) -> tuple[Any, ...]:
    """Return the arguments of `settle` for an outcome."""
    kind = _KINDS[outcome.kind]
    if outcome.kind == OutcomeKind.DEFERRED and outcome.reason == CRASHED:
        kind = "crashed"
    result = outcome.result
    reason = result.reason if result is not None else outcome.reason
    delay = micros(max(outcome.delay, 0.0))
    return (outcome.task_id, *_fence(outcome.fence), kind, delay, clean(reason) or "", *result_arguments(result))


def result_arguments(result: Result | None) -> tuple[str, bytes]:
    """Return a result as its header in JSON, and its payload.

    The header of a success has under 64 bytes: with a longer value Redis makes another, larger kind of hash of the
    whole task, which took a quarter of the time of a settle.
    """
    if result is None:
        return "", b""
    header = [
        _OUTCOMES.index(result.status),
        result.attempts,
        stamp(result.enqueued_at),
        stamp(result.started_at),
        stamp(result.finished_at),
        clean(result.error),
        clean(result.reason),
        clean(result.traceback),
    ]
    while header[-1] is None:
        header.pop()
    return json.dumps(header, separators=(",", ":")), result.payload or b""


def result_from(task_id: str, header: bytes, payload: bytes, row: Any, now: Any) -> Result | None:
    """Return the result in an answer of `results`, if there is one. `row` shows a task that expired."""
    if header == _EXPIRED:
        return expired_result(task_from(row, now))
    if not header:
        return None
    known = json.loads(header)
    outcome, attempts, enqueued, started, finished, error, reason, traceback = known + [None] * (8 - len(known))
    return Result(
        task_id=task_id, status=_OUTCOMES[outcome], payload=payload or None, error=error, traceback=traceback,
        reason=reason, attempts=attempts, enqueued_at=moment(enqueued), started_at=moment(started),
        finished_at=moment(finished),
    )  # fmt: skip


# --- workers ----------------------------------------------------------------------------------------------------------


def held_arguments(held: Sequence[Held]) -> Iterator[Any]:
    """Return the arguments of `extend` for what a worker holds."""
    for item in held:
        yield item.id
        yield from _fence(item.fence)
        yield "" if item.progress is None else json.dumps(item.progress, default=str)


def worker_record(worker: WorkerInfo) -> str:
    """Return what is kept of a worker."""
    queues = None if worker.queues is None else list(worker.queues)
    data = [queues, worker.lease, worker.host, worker.pid, stamp(worker.started_at)]
    return json.dumps(data, separators=(",", ":"))


def worker_from(worker_id: bytes, ends: bytes, record: bytes) -> WorkerInfo:
    """Return a worker from its record and the moment until which it counts as alive."""
    queues, lease, host, pid, started_at = json.loads(record)
    return WorkerInfo(
        id=worker_id.decode(),
        queues=None if queues is None else tuple(queues),
        lease=lease,
        host=host,
        pid=pid,
        started_at=moment(started_at) or _EPOCH,
        seen_at=moment(int(ends) - micros(lease)),
    )
