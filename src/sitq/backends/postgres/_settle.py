"""What workers hand in: outcomes, signs of life, and the end of a worker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sitq.backends._view import RETENTION, clean
from sitq.backends.postgres._connect import Tx
from sitq.backends.postgres._rows import (
    RESULT_COLUMNS,
    RESULT_TYPES,
    STATUS_CODES,
    columns,
    result_set,
    result_values,
)
from sitq.core import CRASHED, Extended, Held, Outcome, OutcomeKind, Status, WorkerInfo

__all__ = [
    "CANCELLED_RESULT", "END", "KEEP_WORKER", "RUNNING", "Heartbeat", "abandon", "at_end", "beat", "look", "settle",
    "worker_values",
]  # fmt: skip

_FAILED = str(RETENTION[Status.FAILED])


def at_end(retention: str = _FAILED) -> str:
    """Return what is set when a task `k` ends at `t.now`, besides its status and result."""
    return f"""
        worker_id = NULL, lease_until = NULL,
        purge_at = greatest(t.now + make_interval(secs => coalesce(k.retention, {retention})), k.unique_until),
        unique_key = CASE WHEN k.unique_until > t.now THEN k.unique_key END"""


CANCELLED_RESULT = """
status = 3, outcome = 'failed', reason = 'cancelled', error = 'cancelled', result = NULL, traceback = NULL,
attempts = k.attempt, enqueued_at = k.created_at, started_at = NULL, finished_at = t.now
"""

# Not `= 1`, to which the index of leases would answer. By statistics from a quiet hour PostgreSQL takes that index for
# empty, and walks through all that runs for each outcome: 4 s for 500 beside 8,600 running tasks, and 31 s for a
# heartbeat of 8,160, whose leases were gone by then.
RUNNING = "k.status + 0 = 1"

# --- settle -----------------------------------------------------------------------------------------------------------

_BY_STATUS = f"CASE o.status WHEN 2 THEN {RETENTION[Status.COMPLETED]} ELSE {_FAILED} END"
_RESULT_SET = result_set(f"o.{name}" for name in RESULT_COLUMNS.split(", "))
_RESULT_ARRAYS = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(RESULT_TYPES, start=6))
END = f"""
{{begin}}
UPDATE {{s}}.sitq_tasks AS k SET status = o.status, {at_end(_BY_STATUS)}, {_RESULT_SET}
FROM t, unnest($3::text[], $4::bigint[], $5::smallint[], {_RESULT_ARRAYS}) AS o (id, fence, status, {RESULT_COLUMNS})
WHERE k.id = o.id AND k.fence = o.fence AND {RUNNING}
RETURNING k.id, k.fence
"""
_END_CANCELLED = f"""
{{begin}}
UPDATE {{s}}.sitq_tasks AS k SET {CANCELLED_RESULT}, {at_end()}
FROM t, unnest($3::text[], $4::bigint[]) AS o (id, fence)
WHERE k.id = o.id AND k.fence = o.fence AND {RUNNING} AND k.cancel_requested
RETURNING k.id, k.fence
"""
_AGAIN = f"""
{{begin}}
UPDATE {{s}}.sitq_tasks AS k SET
    status = 0, worker_id = NULL, lease_until = NULL, reason = o.reason,
    due = coalesce(t.now + make_interval(secs => o.delay), k.due),
    attempt = k.attempt - o.released, crashes = k.crashes + o.crashed, solo_crashes = k.solo_crashes + o.crashed
FROM t, unnest($3::text[], $4::bigint[], $5::text[], $6::double precision[], $7::int[], $8::int[])
    AS o (id, fence, reason, delay, released, crashed)
WHERE k.id = o.id AND k.fence = o.fence AND {RUNNING} AND NOT k.cancel_requested
RETURNING k.id, k.fence
"""
_FENCES = "SELECT id, fence, status FROM {s}.sitq_tasks WHERE id = ANY ($1)"

_ENDS = {OutcomeKind.COMPLETED: Status.COMPLETED, OutcomeKind.FAILED: Status.FAILED}


async def settle(tx: Tx, outcomes: Sequence[Outcome]) -> list[bool]:
    """Apply outcomes whose fence is the task's and whose task still runs; True where the fence is the task's."""
    taken: set[tuple[str, int | None]] = set()
    pending = list(outcomes)
    while pending:
        taken |= await _apply(tx, pending)
        missing = [outcome for outcome in pending if (outcome.task_id, outcome.fence) not in taken]
        if not missing:
            break
        rows = await tx.plain(_FENCES, [outcome.task_id for outcome in missing])
        taken |= {(task_id, fence) for task_id, fence, status in rows if status != 1}  # had settled before
        running = {(task_id, fence) for task_id, fence, status in rows if status == 1}
        # One that still runs under its fence was asked to stop in between: it is to be seen as such.
        pending = [outcome for outcome in missing if (outcome.task_id, outcome.fence) in running]
    return [(outcome.task_id, outcome.fence) in taken for outcome in outcomes]


async def _apply(tx: Tx, outcomes: Sequence[Outcome]) -> set[tuple[str, int | None]]:
    """Apply outcomes; return the id and fence of those that changed their task."""
    ended = [_end_values(outcome) for outcome in outcomes if outcome.kind in _ENDS]
    again = [_again_values(outcome) for outcome in outcomes if outcome.kind not in _ENDS]
    changed: list[Any] = []
    if ended:
        changed += await tx.write(END, *columns(ended))
        tx.done = True
    if again:
        values = columns(again)
        changed += await tx.write(_END_CANCELLED, *values[:2])
        changed += await tx.write(_AGAIN, *values)
        tx.done = tx.wake = True
    return {(task_id, fence) for task_id, fence in changed}


def _end_values(outcome: Outcome) -> tuple[Any, ...]:
    return (outcome.task_id, outcome.fence, STATUS_CODES[_ENDS[outcome.kind]], *result_values(outcome.result))


def _again_values(outcome: Outcome) -> tuple[Any, ...]:
    released = outcome.kind == OutcomeKind.RELEASED
    crashed = outcome.reason == CRASHED and not released
    delay = outcome.delay if outcome.delay > 0 else None
    return (outcome.task_id, outcome.fence, clean(outcome.reason), delay, int(released), int(crashed))


# --- signs of life ----------------------------------------------------------------------------------------------------

# Written at most every third of a lease.
KEEP_WORKER = """
kept AS (
    INSERT INTO {s}.sitq_workers AS w (id, queues, lease, host, pid, started_at, seen)
    SELECT $3::text, $4::text[], $5::double precision, $6::text, $7::int, $8::timestamptz, t.now FROM t
    WHERE NOT EXISTS (
        SELECT FROM {s}.sitq_workers AS w
        WHERE w.id = $3 AND w.lease = $5 AND t.now - w.seen < make_interval(secs => $5 / 3)
    )
    ON CONFLICT (id) DO UPDATE SET seen = excluded.seen, lease = excluded.lease
)
"""
_LOOK = """
SELECT n.now, (SELECT w.seen FROM {s}.sitq_workers AS w WHERE w.id = $2 AND w.lease = $3),
    k.id, k.fence, k.cancel_requested, k.lease_until
FROM (SELECT {now} AS now) AS n LEFT JOIN {s}.sitq_tasks AS k ON k.status = 1 AND k.worker_id = $2
"""
_RENEW = f"""
{{begin}}, {KEEP_WORKER}
UPDATE {{s}}.sitq_tasks AS k SET
    lease_until = CASE WHEN o.renews THEN t.now + make_interval(secs => $5) ELSE k.lease_until END,
    progress = coalesce(o.progress, k.progress)
FROM t, unnest($9::text[], $10::bigint[], $11::boolean[], $12::text[]) AS o (id, fence, renews, progress)
WHERE k.id = o.id AND k.fence = o.fence AND {RUNNING}
RETURNING k.id
"""
_ABANDON = """
{begin}, gone AS (DELETE FROM {s}.sitq_workers WHERE id = $3)
UPDATE {s}.sitq_tasks AS k SET lease_until = t.now FROM t WHERE k.status = 1 AND k.worker_id = $3 RETURNING k.seq
"""


@dataclass(slots=True)
class Heartbeat:
    """What a heartbeat found, and what it has to write."""

    extended: Extended
    renewals: list[tuple[str, int | None, bool, str | None]]
    unheard: list[Outcome]
    is_seen: bool

    @property
    def writes(self) -> bool:
        """Say whether there is anything to write."""
        return bool(self.renewals or self.unheard) or not self.is_seen


def worker_values(worker: WorkerInfo) -> tuple[Any, ...]:
    """Return the parameters of `KEEP_WORKER`, from the third on."""
    queues = None if worker.queues is None else list(worker.queues)
    return (worker.id, queues, worker.lease, worker.host, worker.pid, worker.started_at)


async def look(tx: Tx, worker: WorkerInfo, held: Sequence[Held]) -> Heartbeat:
    """Compare what a worker holds with what it says it holds. A read."""
    found = await tx.read(_LOOK, worker.id, worker.lease)
    now, seen = found[0][:2]
    rows = {row[2]: row[3:] for row in found if row[2] is not None}
    lost, cancelled, renewals = set(), set(), []
    for item in held:
        row = rows.pop(item.id, None)
        if row is None or row[0] != item.fence:
            lost.add(item.id)
            continue
        if row[1]:
            cancelled.add(item.id)
        progress = None if item.progress is None else json.dumps(item.progress, default=str)
        renews = not worker.lease * 2 / 3 <= (row[2] - now).total_seconds() <= worker.lease
        if renews or progress is not None:
            renewals.append((item.id, item.fence, renews, progress))
    unheard = [
        Outcome.released(task_id, row[0])
        for task_id, row in rows.items()
        if (row[2] - now).total_seconds() < worker.lease / 2
    ]
    is_seen = seen is not None and (now - seen).total_seconds() < worker.lease / 3
    return Heartbeat(Extended(lost=frozenset(lost), cancelled=frozenset(cancelled)), renewals, unheard, is_seen)


async def beat(tx: Tx, worker: WorkerInfo, heartbeat: Heartbeat) -> Extended:
    """Renew leases, publish progress, give back what the worker never heard of."""
    renewals = columns(heartbeat.renewals) if heartbeat.renewals else [[], [], [], []]
    renewed = {row[0] for row in await tx.write(_RENEW, *worker_values(worker), *renewals)}
    if heartbeat.unheard:
        await settle(tx, heartbeat.unheard)
    extended = heartbeat.extended
    lost_meanwhile = {task_id for task_id, *_ in heartbeat.renewals} - renewed
    return Extended(lost=extended.lost | lost_meanwhile, cancelled=extended.cancelled - lost_meanwhile)


async def abandon(tx: Tx, worker_id: str) -> int:
    """End the leases of a dead worker; return how many."""
    tx.wake = True
    return len(await tx.write(_ABANDON, worker_id))
