"""What workers ask of the store: reserve, settle, extend. Each function runs inside a transaction of the writer."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

from sitq.backends._view import RETENTION, clean
from sitq.backends.sqlite._clock import Clock
from sitq.backends.sqlite._many import chunks, flat, placeholders
from sitq.backends.sqlite._rows import RESERVED_COLUMNS, RESULT_COLUMNS, STATUS_CODES, result_values
from sitq.backends.sqlite._schema import INLINE
from sitq.core import CRASHED, Extended, Held, Outcome, OutcomeKind, Status, WorkerInfo

__all__ = [
    "CANCELLED_RESULT", "NEXT_WORK", "PAYLOAD", "RESERVE", "RESULT_SET", "Transaction", "abandon", "at_end",
    "end_statement", "expire", "extend", "has_active", "look", "next_work", "reserve", "settle",
]  # fmt: skip

PAYLOAD = "coalesce(payload, (SELECT payload FROM sitq_payloads AS p WHERE p.seq = sitq_tasks.seq))"


@dataclass(slots=True)
class Transaction:
    """A transaction of the writer: what operations run in, and whom to wake when it is committed.

    For each operation time stands still: what its first statement left alone is not due for its next.
    """

    connection: sqlite3.Connection
    epoch: int
    clock: Clock = field(default_factory=Clock)
    now: float = 0.0
    lease_now: float = 0.0
    wake: bool = False
    done: bool = False

    def at(self, clock: Clock) -> Self:
        """Set the time for the next operation."""
        self.clock, self.now, self.lease_now = clock, clock.now(), clock.lease_now()
        return self


# --- reserve --------------------------------------------------------------------------------------------------------

# A loose scan: one probe for each queue that has a queued task, ten for its priorities, whatever the number of rows.
_LANES = """
WITH RECURSIVE queued(queue) AS (
    SELECT max(queue) FROM sitq_tasks WHERE status = 0
    UNION ALL
    SELECT (SELECT max(queue) FROM sitq_tasks WHERE status = 0 AND queue < queued.queue) FROM queued
    WHERE queue IS NOT NULL
), open(queue) AS (
    SELECT queue FROM queued WHERE :queues IS NULL
    UNION ALL
    SELECT value FROM json_each(:queues)
    EXCEPT
    SELECT queue FROM sitq_queues WHERE paused
), lane(queue, priority) AS (
    SELECT queue, column1 FROM open, (VALUES (9), (8), (7), (6), (5), (4), (3), (2), (1), (0))
)
"""
_MINE = """
(:queues IS NULL OR queue IN (SELECT value FROM json_each(:queues)))
AND queue NOT IN (SELECT queue FROM sitq_queues WHERE paused)
"""
# Picking by rowid from a sub-select per lane costs 0.6 us a task where 60 us were spent on the same by row values.
RESERVE = f"""
{_LANES}, picked(seq, priority, due) AS (
    SELECT t.seq, t.priority, t.due
    FROM lane CROSS JOIN sitq_tasks AS t ON t.seq IN (
        SELECT seq FROM sitq_tasks
        WHERE status = 0 AND queue = lane.queue AND priority = lane.priority AND due <= :now
        ORDER BY due, seq LIMIT :limit
    )
    WHERE t.expires IS NULL OR t.expires > :now
    UNION ALL
    SELECT seq, priority, due FROM sitq_tasks WHERE status = 1 AND lease_until <= :lease_now AND {_MINE}
)
UPDATE sitq_tasks SET
    crashes = crashes + (status = 1), attempt = attempt + 1, fence = max(fence, :floor) + 1,
    status = 1, worker_id = :worker, lease_until = :lease_now + :lease, reserved_at = :now
WHERE seq IN (SELECT seq FROM picked ORDER BY priority DESC, due, seq LIMIT :limit)
RETURNING {RESERVED_COLUMNS}, {PAYLOAD}, seq
"""  # noqa: S608 (constants only)
_PRIORITY, _DUE, _SEQ = 3, 6, 16

NEXT_WORK = f"""
{_LANES}
SELECT min((
    SELECT min(due) FROM sitq_tasks WHERE status = 0 AND queue = lane.queue AND priority = lane.priority
)), (SELECT lease_until FROM sitq_tasks WHERE status = 1 AND {_MINE} ORDER BY lease_until LIMIT 1)
FROM lane
"""  # noqa: S608
_UNEXPIRED = "(expires IS NULL OR expires > :now)"
_HAS_ACTIVE = f"""
{_LANES}
SELECT EXISTS (SELECT 1 FROM sitq_tasks WHERE status = 1 AND {_MINE})
    OR EXISTS (SELECT 1 FROM sitq_tasks WHERE status = 0 AND attempt > 0 AND {_UNEXPIRED} AND {_MINE})
    OR EXISTS (SELECT 1 FROM lane WHERE EXISTS (
        SELECT 1 FROM sitq_tasks
        WHERE status = 0 AND queue = lane.queue AND priority = lane.priority AND due <= :now AND {_UNEXPIRED}
    ))
"""  # noqa: S608


def reserve(tx: Transaction, worker: WorkerInfo, limit: int) -> list[tuple[Any, ...]]:
    """Reserve up to `limit` tasks, expired leases included; return rows for `reserved_from`, in order."""
    keep_worker(tx, worker)
    expire(tx)
    _end_cancelled_takeovers(tx)
    rows = tx.connection.execute(RESERVE, {
        "queues": _queues_text(worker), "limit": limit, "now": tx.now, "lease_now": tx.lease_now,
        "lease": worker.lease, "floor": tx.epoch << 32, "worker": worker.id,
    }).fetchall()  # fmt: skip
    rows.sort(key=lambda row: (-row[_PRIORITY], row[_DUE], row[_SEQ]))  # RETURNING promises no order
    return rows


def next_work(connection: sqlite3.Connection, worker: WorkerInfo, clock: Clock) -> float | None:
    """Return in how many seconds there will be something to reserve (negative: there is), or None. A read."""
    due, lease_until = connection.execute(NEXT_WORK, {"queues": _queues_text(worker)}).fetchone()
    waits = [] if due is None else [due - clock.now()]
    if lease_until is not None:
        waits.append(lease_until - clock.lease_now())
    return min(waits, default=None)


def has_active(connection: sqlite3.Connection, worker: WorkerInfo, clock: Clock) -> bool:
    """Say whether a task of the worker's queues is ready, running, stalled or retrying. A read."""
    values = {"queues": _queues_text(worker), "now": clock.now()}
    return bool(connection.execute(_HAS_ACTIVE, values).fetchone()[0])


def _queues_text(worker: WorkerInfo) -> str | None:
    return None if worker.queues is None else json.dumps(worker.queues)


# --- the end of a task ------------------------------------------------------------------------------------------------


def at_end(now: str = "?", retention: str = "?") -> str:
    """Return what is set when a task ends, besides its status and result; takes now, the retention, and now again.

    Numbered placeholders would name them once, but Python 3.12 deprecates `?1` with a sequence of values.
    """
    return f"""
        worker_id = NULL, lease_until = NULL,
        purge_at = max({now} + coalesce(retention, {retention}), coalesce(unique_until, 0)),
        unique_key = CASE WHEN unique_until > {now} THEN unique_key END"""


RESULT_SET = ", ".join(f"{column} = ?" for column in RESULT_COLUMNS.split(", "))
_AT_END = at_end()
_END_COLUMNS = f"status, now, kept, {RESULT_COLUMNS}, id, fence".split(", ")
_RESULT = _END_COLUMNS.index("result")
_END_NAMED = ", ".join(f"column{number} AS {name}" for number, name in enumerate(_END_COLUMNS, start=1))
_END_SET = ", ".join(f"{column} = o.{column}" for column in RESULT_COLUMNS.split(", "))


@cache
def end_statement(count: int) -> str:
    """Return the statement that ends `count` tasks; takes `_END_COLUMNS` of each."""
    return f"""
    UPDATE sitq_tasks SET status = o.status, {at_end("o.now", "o.kept")}, {_END_SET}
    FROM (SELECT {_END_NAMED} FROM (VALUES {placeholders(len(_END_COLUMNS), count)})) AS o
    WHERE sitq_tasks.id = o.id AND sitq_tasks.fence = o.fence AND sitq_tasks.status = 1
    """  # noqa: S608 (constants only)


_FAILED_RETENTION = RETENTION[Status.FAILED]
CANCELLED_RESULT = """
status = 3, outcome = 'failed', reason = 'cancelled', error = 'cancelled', result = NULL, traceback = NULL,
attempts = attempt, enqueued_at = created_at, started_at = NULL, finished_at = ?
"""
_END_CANCELLED = f"UPDATE sitq_tasks SET {CANCELLED_RESULT}, {_AT_END} WHERE status = 1 AND cancel_requested"  # noqa: S608
_EXPIRE = f"""
UPDATE sitq_tasks SET status = 3, outcome = 'failed', reason = 'expired', error = NULL, {_AT_END}
WHERE seq IN (SELECT seq FROM sitq_tasks WHERE status = 0 AND expires <= ? ORDER BY expires LIMIT 500)
"""  # noqa: S608 (the words of the error are put together when it is read)


def expire(tx: Transaction) -> None:
    """End queued tasks that are no longer wanted, a bounded number at a time."""
    if tx.connection.execute(_EXPIRE, (tx.now, _FAILED_RETENTION, tx.now, tx.now)).rowcount:
        tx.done = True


def _end_cancelled_takeovers(tx: Transaction) -> None:
    """End tasks whose worker died with a request to cancel unanswered."""
    values = (tx.now, tx.now, _FAILED_RETENTION, tx.now, tx.lease_now)
    if tx.connection.execute(f"{_END_CANCELLED} AND lease_until <= ?", values).rowcount:
        tx.done = True


# --- settle -----------------------------------------------------------------------------------------------------------

_AGAIN = """
UPDATE sitq_tasks SET
    status = 0, worker_id = NULL, lease_until = NULL, reason = ?, due = coalesce(?, due),
    attempt = attempt - ?, crashes = crashes + ?, solo_crashes = solo_crashes + ?
WHERE id = ? AND fence = ? AND status = 1
"""


def settle(tx: Transaction, outcomes: Sequence[Outcome]) -> list[bool]:
    """Apply outcomes whose fence is the task's and whose task still runs; True where the fence is the task's."""
    ended = [_end_values(outcome, tx.now) for outcome in outcomes if outcome.kind in _ENDS]
    again = [_again_values(outcome, tx.now) for outcome in outcomes if outcome.kind not in _ENDS]
    changed = 0
    if ended:
        for piece in _pieces(ended):
            changed += tx.connection.execute(end_statement(len(piece)), flat(piece)).rowcount
        tx.done = True
    if again:
        head = (tx.now, tx.now, _FAILED_RETENTION, tx.now)
        cancelled = [(*head, task_id, fence) for *_, task_id, fence in again]
        changed += tx.connection.executemany(f"{_END_CANCELLED} AND id = ? AND fence = ?", cancelled).rowcount
        changed += tx.connection.executemany(_AGAIN, again).rowcount
        tx.done = tx.wake = True
    if changed == len(outcomes):
        return [True] * changed
    fence_of = "SELECT 1 FROM sitq_tasks WHERE id = ? AND fence = ?"
    return [tx.connection.execute(fence_of, (o.task_id, o.fence)).fetchone() is not None for o in outcomes]


_ENDS = {OutcomeKind.COMPLETED: Status.COMPLETED, OutcomeKind.FAILED: Status.FAILED}


def _end_values(outcome: Outcome, now: float) -> tuple[Any, ...]:
    status = _ENDS[outcome.kind]
    head = (STATUS_CODES[status], now, RETENTION[status])
    return (*head, *result_values(outcome.result), outcome.task_id, outcome.fence)


def _pieces(ended: list[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Cut what has ended into pieces, a statement each. SQLite holds one in memory, so a large result goes alone."""
    yield from chunks([row for row in ended if len(row[_RESULT] or b"") <= INLINE])
    yield from ([row] for row in ended if len(row[_RESULT] or b"") > INLINE)


def _again_values(outcome: Outcome, now: float) -> tuple[Any, ...]:
    due = now + outcome.delay if outcome.delay > 0 else None
    released = outcome.kind == OutcomeKind.RELEASED
    crashed = outcome.reason == CRASHED and not released
    return (clean(outcome.reason), due, released, crashed, crashed, outcome.task_id, outcome.fence)


# --- leases -----------------------------------------------------------------------------------------------------------

_KEEP_WORKER = """
INSERT INTO sitq_workers (id, queues, lease, host, pid, started_at, seen) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET seen = excluded.seen, lease = excluded.lease
WHERE excluded.seen - seen >= excluded.lease / 3
"""
_HELD = """
SELECT id, fence, cancel_requested, lease_until FROM sitq_tasks INDEXED BY sitq_leases
WHERE status = 1 AND lease_until > -1 AND worker_id = ?
"""
_RENEW = """
UPDATE sitq_tasks SET lease_until = coalesce(?, lease_until), progress = coalesce(?, progress)
WHERE id = ? AND fence = ? AND status = 1
"""
_ABANDON = "UPDATE sitq_tasks SET lease_until = 0 WHERE status = 1 AND worker_id = ?"
_SEEN = "SELECT 1 FROM sitq_workers WHERE id = ? AND ? - seen < lease / 3"


@dataclass(slots=True)
class _Heartbeat:
    """What a heartbeat found, and what it has to write."""

    extended: Extended
    renewals: list[tuple[float | None, str | None, str, int | None]]
    unheard: list[Outcome]
    is_seen: bool

    @property
    def writes(self) -> bool:
        return bool(self.renewals or self.unheard) or not self.is_seen


def look(connection: sqlite3.Connection, clock: Clock, worker: WorkerInfo, held: Sequence[Held]) -> _Heartbeat:
    """Compare what a worker holds with what it says it holds. A read."""
    now = clock.lease_now()
    rows = {row[0]: row for row in connection.execute(_HELD, (worker.id,))}
    lost, cancelled, renewals = set(), set(), []
    for item in held:
        row = rows.pop(item.id, None)
        if row is None or row[1] != item.fence:
            lost.add(item.id)
            continue
        if row[2]:
            cancelled.add(item.id)
        progress = None if item.progress is None else json.dumps(item.progress, default=str)
        lease_until = None if worker.lease * 2 / 3 <= row[3] - now <= worker.lease else now + worker.lease
        if lease_until is not None or progress is not None:
            renewals.append((lease_until, progress, item.id, item.fence))
    unheard = [Outcome.released(row[0], row[1]) for row in rows.values() if row[3] - now < worker.lease / 2]
    is_seen = connection.execute(_SEEN, (worker.id, now)).fetchone() is not None
    return _Heartbeat(Extended(lost=frozenset(lost), cancelled=frozenset(cancelled)), renewals, unheard, is_seen)


def extend(tx: Transaction, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
    """Renew leases, publish progress, give back what the worker never heard of."""
    heartbeat = look(tx.connection, tx.clock, worker, held)
    tx.connection.executemany(_RENEW, heartbeat.renewals)
    if heartbeat.unheard:
        settle(tx, heartbeat.unheard)
    keep_worker(tx, worker)
    return heartbeat.extended


def keep_worker(tx: Transaction, worker: WorkerInfo) -> None:
    """Note that a worker lives; written at most every third of its lease."""
    queues, started_at = _queues_text(worker), worker.started_at.timestamp()
    values = (worker.id, queues, worker.lease, worker.host, worker.pid, started_at, tx.lease_now)
    tx.connection.execute(_KEEP_WORKER, values)


def abandon(tx: Transaction, worker_id: str) -> int:
    """End the leases of a dead worker; return how many."""
    tx.connection.execute("DELETE FROM sitq_workers WHERE id = ?", (worker_id,))
    tx.wake = True
    return tx.connection.execute(_ABANDON, (worker_id,)).rowcount
