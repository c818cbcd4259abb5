"""Handing out work: one statement that keeps the worker, ends what has expired, takes over and reserves."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sitq.backends.postgres._connect import Tx
from sitq.backends.postgres._rows import RESERVED_COLUMNS, TAKEN_COLUMNS, columns
from sitq.backends.postgres._settle import CANCELLED_RESULT, KEEP_WORKER, RUNNING, at_end, worker_values
from sitq.core import WorkerInfo

__all__ = [
    "EXPIRE", "FRONT", "NEXT_WORK", "QUICK", "RESERVE", "Marks", "has_active", "look_in_front", "next_work", "reserve",
]  # fmt: skip

# A loose scan: one probe for each queue and priority that has a queued task, whatever the number of rows.
_LANES = """
lane (queue, priority) AS (
    (SELECT queue, priority FROM {s}.sitq_tasks WHERE status = 0 ORDER BY queue, priority LIMIT 1)
    UNION ALL
    SELECT next.queue, next.priority FROM lane CROSS JOIN LATERAL (
        SELECT queue, priority FROM {s}.sitq_tasks
        WHERE status = 0 AND (queue, priority) > (lane.queue, lane.priority) ORDER BY queue, priority LIMIT 1
    ) AS next
), open AS MATERIALIZED (
    SELECT queue, priority FROM lane WHERE queue NOT IN (SELECT queue FROM {s}.sitq_queues WHERE paused)
)
"""
_NAMED_LANES = """
open AS MATERIALIZED (
    SELECT queue, priority::smallint FROM unnest(QUEUES::text[]) AS queue, generate_series(0, 9) AS priority
    WHERE queue NOT IN (SELECT queue FROM {s}.sitq_queues WHERE paused)
)
"""
_MINE = """
(QUEUES::text[] IS NULL OR k.queue = ANY (QUEUES))
AND k.queue NOT IN (SELECT queue FROM {s}.sitq_queues WHERE paused)
"""
_UNEXPIRED = "(k.expires IS NULL OR k.expires > (SELECT now FROM t))"
_READY = f"""
k.status = 0 AND k.queue = l.queue AND k.priority = l.priority AND k.due <= (SELECT now FROM t) AND {_UNEXPIRED}
"""
_END_EXPIRED = f"""
expired AS MATERIALIZED (
    SELECT seq FROM {{s}}.sitq_tasks WHERE status = 0 AND expires <= (SELECT now FROM t)
    ORDER BY expires LIMIT 500 FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE {{s}}.sitq_tasks AS k SET status = 3, outcome = 'failed', reason = 'expired', error = NULL,
        {at_end()}
    FROM t WHERE k.seq = ANY (ARRAY(SELECT seq FROM expired)) RETURNING k.seq
)
"""
EXPIRE = f"{{begin}}, {_END_EXPIRED} SELECT count(*) FROM ended"
"""Ends queued tasks that are no longer wanted, 500 at a time. The words of the error are found when it is read."""

_FLOOR = "floor AS MATERIALIZED (SELECT (SELECT epoch FROM {s}.sitq_epoch) << 32 AS fence)"
_TAKE = f"""
UPDATE {{s}}.sitq_tasks AS k SET
    crashes = k.crashes + k.status, attempt = k.attempt + 1,
    fence = CASE WHEN k.fence > floor.fence THEN k.fence ELSE floor.fence END + 1,
    status = 1, worker_id = $3, reserved_at = t.now, lease_until = t.now + make_interval(secs => $4)
FROM floor, t WHERE k.seq = ANY (ARRAY(SELECT seq FROM picked))
RETURNING {TAKEN_COLUMNS}, k.payload, k.due, k.seq
"""
_ANSWER = f"{RESERVED_COLUMNS}, payload, (SELECT extract(epoch FROM now)::double precision FROM t)"

# First what is best over all lanes, without locks; then as many of each lane, locked, others' skipped: a worker that
# comes at the same moment gets the next ones. A LIMIT with FOR UPDATE in a sub-select may lock more than it returns,
# hence the materialized parts. The second look starts where the first one found something: what was handed out under
# somebody's old snapshot is stepped over once.
_RESERVE = f"""
{{begin}}, LANES, {_END_EXPIRED}, {KEEP_WORKER}, cancelled AS MATERIALIZED (
    SELECT seq FROM {{s}}.sitq_tasks WHERE status = 1 AND lease_until <= (SELECT now FROM t) AND cancel_requested
    LIMIT 500 FOR UPDATE SKIP LOCKED
), ended_cancelled AS (
    UPDATE {{s}}.sitq_tasks AS k SET {CANCELLED_RESULT}, {at_end()}
    FROM t WHERE k.seq = ANY (ARRAY(SELECT seq FROM cancelled)) RETURNING k.seq
), candidate AS MATERIALIZED (
    SELECT l.queue, l.priority, c.due, c.seq, false AS is_takeover FROM open AS l CROSS JOIN LATERAL (
        SELECT k.due, k.seq FROM {{s}}.sitq_tasks AS k WHERE {_READY} ORDER BY k.due, k.seq LIMIT $9
    ) AS c
    UNION ALL
    SELECT k.queue, k.priority, k.due, k.seq, true FROM {{s}}.sitq_tasks AS k
    WHERE k.status = 1 AND k.lease_until <= (SELECT now FROM t) AND NOT k.cancel_requested AND {_MINE}
), chosen AS MATERIALIZED (
    SELECT * FROM candidate ORDER BY priority DESC, due, seq LIMIT $9
), share AS MATERIALIZED (
    SELECT queue, priority, min(due) AS due, count(*) AS number FROM chosen WHERE NOT is_takeover
    GROUP BY queue, priority
), picked AS MATERIALIZED (
    SELECT c.seq FROM share AS l CROSS JOIN LATERAL (
        SELECT k.seq FROM {{s}}.sitq_tasks AS k WHERE {_READY} AND k.due >= l.due ORDER BY k.due, k.seq LIMIT l.number
        FOR UPDATE SKIP LOCKED
    ) AS c
    UNION ALL
    SELECT c.seq FROM (
        SELECT k.seq FROM {{s}}.sitq_tasks AS k
        WHERE k.seq = ANY (ARRAY(SELECT seq FROM chosen WHERE is_takeover)) AND {RUNNING}
            AND k.lease_until <= (SELECT now FROM t)
        FOR UPDATE SKIP LOCKED
    ) AS c
), {_FLOOR}, reserved AS (
    {_TAKE.replace("$4", "$5")}
)
SELECT {_ANSWER}, (SELECT count(*) FROM ended) + (SELECT count(*) FROM ended_cancelled) FROM (SELECT) AS one
LEFT JOIN reserved ON true ORDER BY priority DESC, due, seq
"""
_QUEUE, _PRIORITY, _CREATED, _ETA = 2, 3, 5, 6
_SLOW = 0.02  # seconds: until then the order is exact
_SURELY_SLOW, _LOOKS = 0.005, 8  # seconds that each of so many looks took: not the machine's mood
_QUICK_AGAIN = 0.003  # seconds that a look in front takes where there is little to step over
_BLIND = 2.0  # seconds
_MANY = 10

_FIRST_OF_LANES = """
FROM open AS l CROSS JOIN LATERAL (
    SELECT k.due FROM {s}.sitq_tasks AS k
    WHERE k.status = 0 AND k.queue = l.queue AND k.priority = l.priority ORDER BY k.due LIMIT 1
) AS c
"""
NEXT_WORK = f"""
WITH RECURSIVE LANES
SELECT extract(epoch FROM least((
    SELECT min(c.due) {_FIRST_OF_LANES}
), (
    SELECT k.lease_until FROM {{s}}.sitq_tasks AS k WHERE k.status = 1 AND {_MINE} ORDER BY k.lease_until LIMIT 1
)) - {{now}})::double precision
"""


# From where on each lane has work, and whether there is something to take over.
FRONT = f"""
WITH RECURSIVE LANES
SELECT l.queue, l.priority, c.due, EXISTS (
    SELECT 1 FROM {{s}}.sitq_tasks AS k WHERE k.status = 1 AND k.lease_until <= {{now}} AND {_MINE}
) {_FIRST_OF_LANES}
"""
# Where it is known from where on: nothing before the marks is looked at, no leases, no expiry.
QUICK = f"""
{{begin}}, mark AS MATERIALIZED (
    SELECT m.queue, m.priority, m.due
    FROM unnest($6::text[], $7::smallint[], $8::timestamptz[]) AS m (queue, priority, due)
    WHERE m.queue NOT IN (SELECT queue FROM {{s}}.sitq_queues WHERE paused)
), candidate AS MATERIALIZED (
    SELECT l.queue, l.priority, l.due AS since, c.due, c.seq FROM mark AS l CROSS JOIN LATERAL (
        SELECT k.due, k.seq FROM {{s}}.sitq_tasks AS k WHERE {_READY} AND k.due >= l.due ORDER BY k.due, k.seq LIMIT $5
    ) AS c
), share AS MATERIALIZED (
    SELECT c.queue, c.priority, c.since AS due, count(*) AS number
    FROM (SELECT * FROM candidate ORDER BY priority DESC, due, seq LIMIT $5) AS c GROUP BY c.queue, c.priority, c.since
), picked AS MATERIALIZED (
    SELECT c.seq FROM share AS l CROSS JOIN LATERAL (
        SELECT k.seq FROM {{s}}.sitq_tasks AS k WHERE {_READY} AND k.due >= l.due ORDER BY k.due, k.seq LIMIT l.number
        FOR UPDATE SKIP LOCKED
    ) AS c
), {_FLOOR}, reserved AS ({_TAKE})
SELECT {_ANSWER}, 0 FROM reserved ORDER BY priority DESC, due, seq
"""


_ACTIVE = f"""
WITH RECURSIVE t AS MATERIALIZED (SELECT {{now}} AS now), LANES
SELECT EXISTS (SELECT 1 FROM {{s}}.sitq_tasks AS k WHERE k.status = 1 AND {_MINE})
    OR EXISTS (SELECT 1 FROM {{s}}.sitq_tasks AS k WHERE k.status = 0 AND k.attempt > 0 AND {_UNEXPIRED} AND {_MINE})
    OR EXISTS (SELECT 1 FROM open AS l CROSS JOIN LATERAL (
        SELECT 1 FROM {{s}}.sitq_tasks AS k WHERE {_READY} LIMIT 1
    ) AS c)
"""


def _for(sql: str, queues: str, named: bool) -> str:
    """Return a statement for all queues, or for those that the parameter `queues` names."""
    return sql.replace("LANES", (_NAMED_LANES if named else _LANES).strip()).replace("QUEUES", queues)


RESERVE = {named: _for(_RESERVE, "$4", named) for named in (False, True)}
_NEXT_WORK = {named: _for(NEXT_WORK, "$2", named) for named in (False, True)}
_HAS_ACTIVE = {named: _for(_ACTIVE, "$2", named) for named in (False, True)}
_FRONT = {named: _for(FRONT, "$2", named) for named in (False, True)}


Front = dict[tuple[str, int], Any]
"""From which due time on a queue and priority have work."""


class Marks:
    """From where on a worker's lanes have work, so that it need not always be looked for from the start.

    Where somebody holds an old snapshot, every task that has been handed out leaves an entry in the indexes that each
    reserve must step over: 40 ms for 100 tasks after 60,000, and growing (4 ms with marks). So when a full look has
    become slow, the next ones for many tasks start where it ended, and those for few once eight full looks in a row
    were slow. What is put in front meanwhile (of a higher priority, given back, taken over) is looked for every two
    seconds, beside the reserves (`look_in_front`).
    """

    def __init__(self) -> None:
        self.front: Front = {}
        self._looks: deque[float] = deque(maxlen=_LOOKS)
        self._look_at = 0.0

    def lanes(self, limit: int = _MANY) -> list[list[Any]]:
        """Return queues, priorities and times to start from; nothing when it is time for a full look."""
        if not self.front or (limit < _MANY and not self._is_surely_slow()):
            return []
        return columns([(queue, priority, due) for (queue, priority), due in self.front.items()])

    def note_full_look(self, rows: Sequence[Any], took: float, now: float) -> None:
        """Note what a full look handed out: where it `took` long, the marks begin here."""
        self._looks.append(took)
        self.front = {}
        if took > _SLOW or self._is_surely_slow():
            self._look_at = now + _BLIND
            _advance(self.front, rows)

    def wants_look(self, now: float) -> bool:
        """Say whether it is time to look for what was put in front."""
        return bool(self.front) and now >= self._look_at

    def note_front(self, front: Front, has_takeover: bool, took: float, now: float) -> None:
        """Begin where `look_in_front` says; with a full look if that is quick again or finds a task to take over."""
        self._look_at = now + _BLIND
        self.front = {} if has_takeover or took < _QUICK_AGAIN else front

    def run_dry(self) -> None:
        """Have the next look be a full one."""
        self.front = {}

    def _is_surely_slow(self) -> bool:
        return len(self._looks) == _LOOKS and min(self._looks) > _SURELY_SLOW


def _advance(front: Front, rows: Sequence[Any]) -> None:
    """Move marks to what was handed out; the rows come in order."""
    for row in rows:
        front[row[_QUEUE], row[_PRIORITY]] = row[_ETA] or row[_CREATED]


async def reserve(tx: Tx, worker: WorkerInfo, limit: int, marks: Marks | None = None) -> list[Any]:
    """Reserve up to `limit` tasks, expired leases included; return rows for `reserved_from`, in order."""
    marks = marks or Marks()
    if lanes := marks.lanes(limit):
        front = marks.front  # a look that ends meanwhile sets another, which stays as it is
        rows = await tx.write(QUICK, worker.id, worker.lease, limit, *lanes)
        if len(rows) == limit:
            _advance(front, rows)
            return rows
        marks.run_dry()
        if rows:
            return rows
    start = time.monotonic()
    found = await tx.write(RESERVE[worker.queues is not None], *worker_values(worker), limit)
    tx.done = bool(found[0][-1])
    rows = [row for row in found if row[0] is not None]
    end = time.monotonic()
    marks.note_full_look(rows, end - start, end)
    return rows


async def look_in_front(tx: Tx, worker: WorkerInfo, marks: Marks) -> None:
    """Find from where on there is work, and end what has expired, as a full look does."""
    ((expired,),) = await tx.write(EXPIRE)
    tx.done = bool(expired)
    start = time.monotonic()
    rows = await _read(tx, _FRONT, worker)
    end = time.monotonic()
    front = {(queue, priority): due for queue, priority, due, _ in rows}
    marks.note_front(front, any(row[-1] for row in rows), end - start, end)


async def next_work(tx: Tx, worker: WorkerInfo) -> float | None:
    """Return in how many seconds there will be something to reserve (negative: there is), or None. A read."""
    ((seconds,),) = await _read(tx, _NEXT_WORK, worker)
    return None if seconds is None else float(seconds)


async def has_active(tx: Tx, worker: WorkerInfo) -> bool:
    """Say whether a task of the worker's queues is ready, running, stalled or retrying. A read."""
    ((found,),) = await _read(tx, _HAS_ACTIVE, worker)
    return bool(found)


async def _read(tx: Tx, statements: Mapping[bool, str], worker: WorkerInfo) -> Sequence[Any]:
    """Read by the statement for all queues, or by the one for those that are named."""
    queues = None if worker.queues is None else list(worker.queues)
    return await tx.read(statements[queues is not None], queues)
