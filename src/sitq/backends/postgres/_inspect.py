"""What operators ask of the store about many tasks: list, count, purge, pause."""

from __future__ import annotations

from typing import Any

from sitq.backends.postgres._connect import Tx
from sitq.backends.postgres._reserve import EXPIRE
from sitq.backends.postgres._rows import TASK_COLUMNS, task_from
from sitq.core import Phase, QueueCounts, Task, TaskFilter, WorkerInfo
from sitq.exceptions import TaskNotFoundError

__all__ = ["PURGE", "count", "list_tasks", "list_workers", "pause", "purge"]

_PHASE = """
CASE k.status
WHEN 2 THEN 'completed'
WHEN 3 THEN CASE WHEN k.reason IN ('cancelled', 'expired', 'quarantined') THEN k.reason ELSE 'failed' END
WHEN 1 THEN CASE WHEN k.lease_until <= n.now THEN 'stalled' ELSE 'running' END
ELSE CASE
    WHEN k.expires <= n.now THEN 'expired'
    WHEN k.due > n.now AND k.attempt > 0 THEN 'retrying'
    WHEN k.due > n.now THEN 'scheduled'
    ELSE 'ready' END
END
"""
_LIST = f"""
SELECT {TASK_COLUMNS}, (k.status = 0 AND k.expires <= n.now), NULL::bytea
FROM (SELECT {{now}} AS now) AS n, {{s}}.sitq_tasks AS k
WHERE WHERE_CLAUSE ORDER BY k.seq DESC LIMIT $2
"""
# By queue alone: by queue and phase PostgreSQL expects a group for each row, and sorts them all.
_COUNTS = ", ".join(f"count(*) FILTER (WHERE phase = '{phase}')" for phase in Phase)
_COUNT = f"""
SELECT queue, min(due) FILTER (WHERE phase = '{Phase.READY}'), {_COUNTS} FROM (
    SELECT k.queue, k.due, {_PHASE} AS phase FROM (SELECT {{now}} AS now) AS n, {{s}}.sitq_tasks AS k
) AS seen GROUP BY queue
"""
_WORKERS = """
SELECT w.id, w.queues, w.lease, w.host, w.pid, w.started_at, w.seen
FROM (SELECT {now} AS now) AS n, {s}.sitq_workers AS w
WHERE w.seen + make_interval(secs => w.lease) > n.now ORDER BY w.started_at, w.id
"""
PURGE = """
{begin}, gone AS MATERIALIZED (
    SELECT k.seq FROM {s}.sitq_tasks AS k WHERE k.status >= 2 AND k.purge_at <= (SELECT now FROM t)
    ORDER BY k.purge_at LIMIT $3 FOR UPDATE SKIP LOCKED
), forgotten AS (
    DELETE FROM {s}.sitq_workers AS w USING t WHERE w.seen + make_interval(secs => w.lease + 86400) < t.now
)
DELETE FROM {s}.sitq_tasks AS k WHERE k.seq = ANY (ARRAY(SELECT seq FROM gone)) RETURNING k.seq
"""
_PURGE_MATCHING = """
{begin}, gone AS MATERIALIZED (
    SELECT k.seq FROM t AS n, {s}.sitq_tasks AS k WHERE k.status >= 2 AND WHERE_CLAUSE LIMIT $3
    FOR UPDATE OF k SKIP LOCKED
)
DELETE FROM {s}.sitq_tasks AS k WHERE k.seq = ANY (ARRAY(SELECT seq FROM gone)) RETURNING k.seq
"""
_SEQ = "SELECT seq FROM {s}.sitq_tasks WHERE id = $1"
_PAUSE = "INSERT INTO {s}.sitq_queues VALUES ($1, $2) ON CONFLICT (queue) DO UPDATE SET paused = excluded.paused"


async def _where(tx: Tx, wanted: TaskFilter, first: int) -> tuple[str, list[Any]]:
    """Return the condition for a filter, and its values: parameters from number `first` on."""
    last = [] if wanted.after is None else await tx.plain(_SEQ, wanted.after)
    if wanted.after is not None and not last:
        raise TaskNotFoundError(wanted.after)
    tests = {
        f"({_PHASE}) = %s::text": wanted.phase,
        "k.queue = %s": wanted.queue,
        "k.name = %s": wanted.name,
        "k.worker_id = %s": wanted.worker_id,
        "k.created_at >= %s": wanted.since,
        "k.created_at < %s": wanted.before,
        "k.seq < %s": last[0][0] if last else None,
    }
    used = [(test, value) for test, value in tests.items() if value is not None]
    conditions = [test.replace("%s", f"${number}") for number, (test, _) in enumerate(used, start=first)]
    return " AND ".join(conditions) or "true", [value for _, value in used]


async def list_tasks(tx: Tx, wanted: TaskFilter, limit: int) -> list[Task]:
    """Return tasks without payload, newest first."""
    where, values = await _where(tx, wanted, first=3)
    return [task_from(row) for row in await tx.read(_LIST.replace("WHERE_CLAUSE", where), limit, *values)]


async def count(tx: Tx) -> list[QueueCounts]:
    """Count the tasks of each queue by phase."""
    paused = {queue for (queue,) in await tx.plain("SELECT queue FROM {s}.sitq_queues WHERE paused")}
    counts = {queue: QueueCounts(queue=queue, paused=True) for queue in paused}
    for queue, oldest_ready, *numbers in await tx.read(_COUNT):
        phases = {phase.value: number for phase, number in zip(Phase, numbers, strict=True) if number}
        counts[queue] = QueueCounts(queue=queue, phases=phases, paused=queue in paused, oldest_ready=oldest_ready)
    return [counts[queue] for queue in sorted(counts)]


async def list_workers(tx: Tx) -> list[WorkerInfo]:
    """Return the workers heard of within their lease."""
    return [
        WorkerInfo(
            id=worker_id, queues=queues and tuple(queues), lease=lease, host=host, pid=pid, started_at=started_at,
            seen_at=seen,
        )
        for worker_id, queues, lease, host, pid, started_at, seen in await tx.read(_WORKERS)
    ]  # fmt: skip


async def purge(tx: Tx, wanted: TaskFilter | None, limit: int) -> int:
    """Delete finished tasks: those past their retention, or those that match."""
    if wanted is None:
        await tx.write(EXPIRE)
        return len(await tx.write(PURGE, limit))
    where, values = await _where(tx, wanted, first=4)
    await tx.write(EXPIRE)
    return len(await tx.write(_PURGE_MATCHING.replace("WHERE_CLAUSE", where), limit, *values))


async def pause(tx: Tx, queue: str, paused: bool) -> None:
    """Pause a queue, or let it go on."""
    await tx.plain(_PAUSE, queue, paused)
    tx.wake = not paused
