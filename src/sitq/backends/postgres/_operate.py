"""What operators ask of the store about single tasks: read, move by hand, cancel, run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sitq.backends._view import RETENTION
from sitq.backends.base import check_move
from sitq.backends.postgres._connect import Tx
from sitq.backends.postgres._reserve import EXPIRE
from sitq.backends.postgres._rows import (
    RESULT_COLUMNS,
    RESULT_TYPES,
    STATUS_CODES,
    STATUSES,
    TASK_COLUMNS,
    result_set,
    result_values,
)
from sitq.backends.postgres._settle import CANCELLED_RESULT, at_end
from sitq.core import Cancelled, Result, Status
from sitq.exceptions import InvalidTransitionError, TaskNotFoundError

__all__ = ["cancel", "get_task", "read_results", "requeue", "set_status", "write_result"]

# --- reads ------------------------------------------------------------------------------------------------------------

_EXPIRED = "(k.status = 0 AND k.expires <= {now})"
_TASK = f"SELECT {TASK_COLUMNS}, {_EXPIRED}, k.payload FROM {{s}}.sitq_tasks AS k WHERE k.id = $2"
_RESULT_READ = ", ".join(f"k.{name}" for name in RESULT_COLUMNS.split(", "))
_RESULTS = f"""
SELECT {_RESULT_READ}, {TASK_COLUMNS}, {_EXPIRED}, NULL::bytea FROM {{s}}.sitq_tasks AS k
WHERE k.id = ANY ($2) AND (k.outcome IS NOT NULL OR {_EXPIRED})
"""


async def get_task(tx: Tx, task_id: str) -> Any:
    """Return a row for `task_from`, or None."""
    rows = await tx.read(_TASK, task_id)
    return rows[0] if rows else None


async def read_results(tx: Tx, task_ids: Sequence[str]) -> list[Any]:
    """Return rows for `result_from`, of those tasks that have a result."""
    return await tx.read(_RESULTS, list(task_ids))


# --- moves by hand ----------------------------------------------------------------------------------------------------

_RESULT_SET = result_set(f"${number}::{kind}" for number, kind in enumerate(RESULT_TYPES, start=4))
_WRITE_RESULT = f"{{begin}} UPDATE {{s}}.sitq_tasks AS k SET {_RESULT_SET} FROM t WHERE k.id = $3 RETURNING k.seq"

_STATE = "SELECT status, options FROM {s}.sitq_tasks WHERE id = $1 FOR UPDATE"
_FLOOR = "floor AS MATERIALIZED (SELECT (SELECT epoch FROM {s}.sitq_epoch) << 32 AS fence)"
_RAISE_FENCE = "fence = CASE WHEN k.fence > floor.fence THEN k.fence ELSE floor.fence END + 1"
_RUN = f"""
{{begin}}, {_FLOOR}
UPDATE {{s}}.sitq_tasks AS k SET status = 1, attempt = k.attempt + 1, {_RAISE_FENCE}, worker_id = 'operator',
    lease_until = t.now + interval '30 seconds', reserved_at = t.now
FROM floor, t WHERE k.id = $3
"""
_END = f"""
{{begin}}, {_FLOOR}
UPDATE {{s}}.sitq_tasks AS k SET status = $4::smallint, {_RAISE_FENCE}, {at_end("$5::double precision")},
    reason = CASE WHEN k.outcome IS NOT NULL THEN k.reason END
FROM floor, t WHERE k.id = $3
"""
_FREE_KEY = """
{begin}
UPDATE {s}.sitq_tasks AS k SET unique_key = NULL FROM t
WHERE k.unique_key = $3 AND k.status >= 2 AND k.unique_until <= t.now AND k.id <> $4
"""
_HELD = "SELECT 1 FROM {s}.sitq_tasks WHERE unique_key = $1 AND id <> $2"
_ENDED = "CASE WHEN k.status >= 2 THEN {} ELSE {} END"
_RESET = ", ".join(
    [f"{name} = {_ENDED.format(0, 'k.' + name)}" for name in ("attempt", "crashes", "solo_crashes")]
    + [f"{name} = {_ENDED.format('NULL', 'k.' + name)}" for name in ("purge_at", "outcome", "result", "error")]
    + [f"traceback = {_ENDED.format('NULL', 'k.traceback')}"]
)
_QUEUE = f"""
{{begin}}, {_FLOOR}
UPDATE {{s}}.sitq_tasks AS k SET status = 0, {_RAISE_FENCE}, worker_id = NULL, lease_until = NULL, reason = NULL,
    due = least(k.due, t.now), cancel_requested = false, unique_key = $4::text, {_RESET}
FROM floor, t WHERE k.id = $3
"""
_REQUEST = "UPDATE {s}.sitq_tasks SET cancel_requested = true WHERE id = $1"
_CANCEL = f"{{begin}} UPDATE {{s}}.sitq_tasks AS k SET {CANCELLED_RESULT}, {at_end()} FROM t WHERE k.id = $3"


async def write_result(tx: Tx, task_id: str, result: Result) -> None:
    """Store a result by hand."""
    if not await tx.write(_WRITE_RESULT, task_id, *result_values(result)):
        raise TaskNotFoundError(task_id)
    tx.done = True


async def set_status(tx: Tx, task_id: str, status: str) -> None:
    """Move a task by hand; it has another fence then, so its worker can settle no more."""
    await tx.write(EXPIRE)
    rows = await tx.plain(_STATE, task_id)
    if not rows:
        raise TaskNotFoundError(task_id)
    old = STATUSES[rows[0][0]]
    new = check_move(task_id, old, status)
    if new == old:
        return
    if new == Status.QUEUED:
        if not await _queue(tx, task_id, rows[0][1]):
            raise InvalidTransitionError(f"task {task_id!r} cannot be queued: another task holds its unique key now")
    elif new == Status.RUNNING:
        await tx.write(_RUN, task_id)
    else:
        await tx.write(_END, task_id, STATUS_CODES[new], RETENTION[new])
        tx.done = True


async def _queue(tx: Tx, task_id: str, options: str | None) -> bool:
    """Make a task queued, unless another one holds its unique key."""
    unique = json.loads(options).get("unique") if options else None
    if unique is not None:
        await tx.write(_FREE_KEY, unique, task_id)
        if await tx.plain(_HELD, unique, task_id):
            return False
    await tx.write(_QUEUE, task_id, unique)
    tx.wake = True
    return True


async def requeue(tx: Tx, task_ids: Sequence[str]) -> list[bool]:
    """Run finished tasks again."""
    await tx.write(EXPIRE)
    answers: list[bool] = []
    for task_id in task_ids:
        rows = await tx.plain(_STATE, task_id)
        ended = bool(rows) and STATUSES[rows[0][0]] in RETENTION
        answers.append(ended and await _queue(tx, task_id, rows[0][1]))
    return answers


async def cancel(tx: Tx, task_ids: Sequence[str]) -> list[Cancelled]:
    """End queued tasks, ask running ones to stop."""
    await tx.write(EXPIRE)
    return [await _cancel(tx, task_id) for task_id in task_ids]


async def _cancel(tx: Tx, task_id: str) -> Cancelled:
    rows = await tx.plain(_STATE, task_id)
    if not rows:
        return Cancelled.UNKNOWN
    status = STATUSES[rows[0][0]]
    if status == Status.RUNNING:
        await tx.plain(_REQUEST, task_id)
        return Cancelled.REQUESTED
    if status in RETENTION:
        return Cancelled.FINISHED
    await tx.write(_CANCEL, task_id)
    tx.done = True
    return Cancelled.CANCELLED
