"""What operators ask of the store: look at tasks and queues, cancel, requeue, purge, pause."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sitq.backends._view import RETENTION
from sitq.backends.base import check_move
from sitq.backends.sqlite._clock import Clock
from sitq.backends.sqlite._rows import RESULT_COLUMNS, STATUS_CODES, STATUSES, TASK_COLUMNS, result_values, task_from
from sitq.backends.sqlite._work import CANCELLED_RESULT, PAYLOAD, RESULT_SET, Transaction, at_end, expire
from sitq.core import Cancelled, QueueCounts, Result, Status, Task, TaskFilter, WorkerInfo
from sitq.exceptions import InvalidTransitionError, TaskNotFoundError

__all__ = [
    "cancel", "count", "get_task", "list_tasks", "list_workers", "pause", "purge", "read_results", "requeue",
    "set_status", "write_result",
]  # fmt: skip

# --- one task ---------------------------------------------------------------------------------------------------------

_TASK = f"SELECT {TASK_COLUMNS}, {PAYLOAD} FROM sitq_tasks WHERE id = ?"  # noqa: S608
_RESULTS = f"""
SELECT {RESULT_COLUMNS}, {TASK_COLUMNS}, NULL FROM sitq_tasks
WHERE id IN (SELECT value FROM json_each(?)) AND (outcome IS NOT NULL OR (status = 0 AND expires <= ?))
"""  # noqa: S608


def get_task(connection: sqlite3.Connection, task_id: str) -> tuple[Any, ...] | None:
    """Return a row for `task_from`."""
    row: tuple[Any, ...] | None = connection.execute(_TASK, (task_id,)).fetchone()
    return row


def read_results(connection: sqlite3.Connection, task_ids: Sequence[str], now: float) -> list[tuple[Any, ...]]:
    """Return rows for `result_from`, of those tasks that have a result."""
    return connection.execute(_RESULTS, (json.dumps(task_ids), now)).fetchall()


def write_result(tx: Transaction, task_id: str, result: Result) -> None:
    """Store a result by hand."""
    values = (*result_values(result), task_id)
    if tx.connection.execute(f"UPDATE sitq_tasks SET {RESULT_SET} WHERE id = ?", values).rowcount == 0:  # noqa: S608
        raise TaskNotFoundError(task_id)
    tx.done = True


# --- moves by hand ----------------------------------------------------------------------------------------------------

_STATE = "SELECT status, coalesce(json_extract(options, '$.unique'), '') FROM sitq_tasks WHERE id = ?"
_RAISE_FENCE = "fence = max(fence, :floor) + 1"
_RUN = f"""
UPDATE sitq_tasks SET status = 1, attempt = attempt + 1, {_RAISE_FENCE}, worker_id = 'operator',
    lease_until = :lease_now + 30, reserved_at = :now
WHERE id = :id
"""  # noqa: S608
_LET_GO = f"{_RAISE_FENCE}, worker_id = NULL, lease_until = NULL"
_END = f"""
UPDATE sitq_tasks SET status = :status, {_RAISE_FENCE}, {at_end(":now", ":retention")},
    reason = CASE WHEN outcome IS NOT NULL THEN reason END
WHERE id = :id
"""  # noqa: S608
_QUEUE = f"""
UPDATE sitq_tasks SET status = 0, {_LET_GO}, reason = NULL, cancel_requested = 0,
    due = min(due, :now), unique_key = json_extract(options, '$.unique')
WHERE id = :id
"""  # noqa: S608
_RESET = """
UPDATE sitq_tasks SET attempt = 0, crashes = 0, solo_crashes = 0, purge_at = NULL, outcome = NULL, result = NULL,
    error = NULL, traceback = NULL
WHERE id = ? AND status >= 2
"""
_FREE_KEY = """
UPDATE sitq_tasks SET unique_key = NULL WHERE unique_key = ? AND status >= 2 AND unique_until <= ? AND id <> ?
"""
_CANCEL = f"UPDATE sitq_tasks SET {CANCELLED_RESULT}, {at_end()} WHERE id = ?"  # noqa: S608


def set_status(tx: Transaction, task_id: str, status: str) -> None:
    """Move a task by hand; it has another fence then, so its worker can settle no more."""
    expire(tx)
    row = tx.connection.execute(_STATE, (task_id,)).fetchone()
    if row is None:
        raise TaskNotFoundError(task_id)
    old = STATUSES[row[0]]
    new = check_move(task_id, old, status)
    if new == old:
        return
    if new == Status.QUEUED:
        if not _queue(tx, task_id, row[1]):
            raise InvalidTransitionError(f"task {task_id!r} cannot be queued: another task holds its unique key now")
        return
    values = {
        "id": task_id, "status": STATUS_CODES[new], "floor": tx.epoch << 32, "now": tx.now,
        "lease_now": tx.lease_now, "retention": RETENTION.get(new),
    }  # fmt: skip
    tx.connection.execute(_RUN if new == Status.RUNNING else _END, values)
    tx.done = True


def _queue(tx: Transaction, task_id: str, unique: str) -> bool:
    """Make a task queued, unless another one holds its unique key."""
    if unique:
        tx.connection.execute(_FREE_KEY, (unique, tx.now, task_id))
        held = "SELECT 1 FROM sitq_tasks WHERE unique_key = ? AND id <> ?"
        if tx.connection.execute(held, (unique, task_id)).fetchone():
            return False
    tx.connection.execute(_RESET, (task_id,))
    tx.connection.execute(_QUEUE, {"id": task_id, "floor": tx.epoch << 32, "now": tx.now})
    tx.wake = True
    return True


def requeue(tx: Transaction, task_ids: Sequence[str]) -> list[bool]:
    """Run finished tasks again."""
    expire(tx)
    answers = []
    for task_id in task_ids:
        row = tx.connection.execute(_STATE, (task_id,)).fetchone()
        answers.append(row is not None and STATUSES[row[0]] in RETENTION and _queue(tx, task_id, row[1]))
    return answers


def cancel(tx: Transaction, task_ids: Sequence[str]) -> list[Cancelled]:
    """End queued tasks, ask running ones to stop."""
    expire(tx)
    return [_cancel(tx, task_id) for task_id in task_ids]


def _cancel(tx: Transaction, task_id: str) -> Cancelled:
    row = tx.connection.execute(_STATE, (task_id,)).fetchone()
    if row is None:
        return Cancelled.UNKNOWN
    status = STATUSES[row[0]]
    if status == Status.RUNNING:
        tx.connection.execute("UPDATE sitq_tasks SET cancel_requested = 1 WHERE id = ?", (task_id,))
        return Cancelled.REQUESTED
    if status in RETENTION:
        return Cancelled.FINISHED
    tx.connection.execute(_CANCEL, (tx.now, tx.now, RETENTION[Status.FAILED], tx.now, task_id))
    tx.done = True
    return Cancelled.CANCELLED


def pause(tx: Transaction, queue: str, paused: bool) -> None:
    """Pause a queue, or let it go on."""
    upsert = "INSERT INTO sitq_queues VALUES (?, ?) ON CONFLICT (queue) DO UPDATE SET paused = excluded.paused"
    tx.connection.execute(upsert, (queue, paused))
    tx.wake = tx.wake or not paused


# --- many tasks -------------------------------------------------------------------------------------------------------

_PHASE = """
CASE status
WHEN 2 THEN 'completed'
WHEN 3 THEN CASE WHEN reason IN ('cancelled', 'expired', 'quarantined') THEN reason ELSE 'failed' END
WHEN 1 THEN CASE WHEN lease_until <= :lease_now THEN 'stalled' ELSE 'running' END
ELSE CASE
    WHEN expires <= :now THEN 'expired'
    WHEN due > :now AND attempt > 0 THEN 'retrying'
    WHEN due > :now THEN 'scheduled'
    ELSE 'ready' END
END
"""


def _where(connection: sqlite3.Connection, wanted: TaskFilter, clock: Clock) -> tuple[str, dict[str, Any]]:
    """Return the condition for a filter, and its values."""
    last = wanted.after and connection.execute("SELECT seq FROM sitq_tasks WHERE id = ?", (wanted.after,)).fetchone()
    if wanted.after is not None and not last:
        raise TaskNotFoundError(wanted.after)
    tests = {
        f"({_PHASE}) = :phase": wanted.phase,
        "queue = :queue": wanted.queue,
        "name = :name": wanted.name,
        "worker_id = :worker": wanted.worker_id,
        "created_at >= :since": wanted.since and wanted.since.timestamp(),
        "created_at < :before": wanted.before and wanted.before.timestamp(),
        "seq < :after": last[0] if last else None,
    }
    values: dict[str, Any] = {"now": clock.now(), "lease_now": clock.lease_now()}
    used = {test: value for test, value in tests.items() if value is not None}
    values |= {test.rsplit(":", 1)[1].rstrip(")"): value for test, value in used.items()}
    return " AND ".join(used) or "TRUE", values


def list_tasks(connection: sqlite3.Connection, wanted: TaskFilter, limit: int, clock: Clock) -> list[Task]:
    """Return tasks without payload, newest first."""
    where, values = _where(connection, wanted, clock)
    columns = f"SELECT {TASK_COLUMNS}, NULL FROM sitq_tasks"  # noqa: S608
    rows = connection.execute(f"{columns} WHERE {where} ORDER BY seq DESC LIMIT :limit", values | {"limit": limit})
    return [task_from(row, clock) for row in rows]


def count(connection: sqlite3.Connection, clock: Clock) -> list[QueueCounts]:
    """Count the tasks of each queue by phase."""
    by_phase = f"SELECT queue, {_PHASE}, count(*), min(due) FROM sitq_tasks GROUP BY 1, 2"  # noqa: S608
    paused = {queue for (queue,) in connection.execute("SELECT queue FROM sitq_queues WHERE paused")}
    phases: dict[str, dict[str, int]] = {queue: {} for queue in paused}
    oldest: dict[str, datetime] = {}
    for queue, phase, number, due in connection.execute(by_phase, {"now": clock.now(), "lease_now": clock.lease_now()}):
        phases.setdefault(queue, {})[phase] = number
        if phase == "ready":
            oldest[queue] = datetime.fromtimestamp(due, UTC)
    return [
        QueueCounts(queue=queue, phases=phases[queue], paused=queue in paused, oldest_ready=oldest.get(queue))
        for queue in sorted(phases)
    ]


def list_workers(connection: sqlite3.Connection, clock: Clock) -> list[WorkerInfo]:
    """Return the workers heard of within their lease."""
    now, lease_now = clock.now(), clock.lease_now()
    columns = "SELECT id, queues, lease, host, pid, started_at, seen FROM sitq_workers"
    return [
        WorkerInfo(
            id=worker_id, queues=queues and tuple(json.loads(queues)), lease=lease, host=host, pid=pid,
            started_at=datetime.fromtimestamp(started_at, UTC),
            seen_at=datetime.fromtimestamp(now + seen - lease_now, UTC),
        )
        for worker_id, queues, lease, host, pid, started_at, seen in connection.execute(
            f"{columns} WHERE seen + lease > ? ORDER BY started_at, id", (lease_now,)
        )
    ]  # fmt: skip


def purge(tx: Transaction, wanted: TaskFilter | None, limit: int) -> int:
    """Delete finished tasks: those past their retention, or those that match."""
    if wanted is None:
        where, values = "status >= 2 AND purge_at <= :now ORDER BY purge_at", {"now": tx.now}
    else:
        where, values = _where(tx.connection, wanted, tx.clock)
        where = f"status >= 2 AND {where}"
    expire(tx)
    rows = tx.connection.execute(f"SELECT seq FROM sitq_tasks WHERE {where} LIMIT :limit", values | {"limit": limit})  # noqa: S608
    gone = rows.fetchall()
    tx.connection.executemany("DELETE FROM sitq_payloads WHERE seq = ?", gone)
    tx.connection.executemany("DELETE FROM sitq_tasks WHERE seq = ?", gone)
    tx.connection.execute("DELETE FROM sitq_workers WHERE seen + lease + 86400 < ?", (tx.lease_now,))
    return len(gone)
