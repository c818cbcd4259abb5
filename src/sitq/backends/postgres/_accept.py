"""New tasks: written many at a time, each answered with whether it is new."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sitq.backends.postgres._connect import Tx
from sitq.backends.postgres._rows import NewRow, columns
from sitq.core import Accepted
from sitq.exceptions import BackendError

__all__ = ["CALL", "Write", "accept", "accept_early", "call_values", "has_keys"]

Write = Callable[..., Awaitable[list[Any]]]
"""Runs a statement that begins with `{begin}`, on whichever connection."""

_UNIQUE = slice(9, 11)  # the key, and how long it is held
_UNIQUE_KEY = _UNIQUE.start
_ROUNDS = 20

_INSERT = """
{begin}
INSERT INTO {s}.sitq_tasks (
    id, queue, priority, due, created_at, name, options, expires, retention, unique_key, unique_until, payload
)
SELECT n.id, n.queue, n.priority, CASE WHEN n.eta > n.created_at THEN n.eta ELSE least(n.created_at, t.now) END,
    n.created_at, n.name, n.options, n.expires, n.retention, n.unique_key,
    CASE WHEN n.unique_key IS NOT NULL THEN t.now + make_interval(secs => coalesce(n.unique_for, 0)) END, n.payload
FROM t, unnest(
    $3::text[], $4::text[], $5::smallint[], $6::timestamptz[], $7::timestamptz[], $8::text[], $9::text[],
    $10::timestamptz[], $11::double precision[], $12::text[], $13::double precision[], $14::bytea[]
) AS n (
    id, queue, priority, created_at, eta, name, options, expires, retention, unique_key, unique_for, payload
)
ON CONFLICT DO NOTHING
RETURNING id
"""
_FREE_KEYS = """
{begin}
UPDATE {s}.sitq_tasks AS k SET unique_key = NULL FROM t
WHERE k.unique_key = ANY ($3::text[]) AND k.unique_until <= t.now
    AND (k.status >= 2 OR (k.status = 0 AND k.expires <= t.now))
RETURNING k.id
"""
_HOLDERS = """
{begin}
SELECT k.id, k.unique_key FROM t, {s}.sitq_tasks AS k
WHERE k.id = ANY ($3::text[]) OR k.unique_key = ANY ($4::text[])
"""

CALL = "CALL {s}.sitq_accept($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, NULL)"


def has_keys(rows: Sequence[NewRow]) -> bool:
    """Say whether a row has a unique key: then `accept` needs a transaction around it."""
    return any(row[_UNIQUE_KEY] is not None for row in rows)


async def accept(write: Write, rows: Sequence[NewRow]) -> list[Accepted]:
    """Insert rows, in order."""
    keys = [row[_UNIQUE_KEY] for row in rows if row[_UNIQUE_KEY] is not None]
    if keys:
        await write(_FREE_KEYS, sorted(set(keys)))
    new = {row[0] for row in await write(_INSERT, *columns(rows))}
    if len(new) == len(rows):
        return [Accepted(id=row[0]) for row in rows]
    if keys:
        return await _with_keys(write, rows, new)
    return [Accepted(id=row[0], created=_first(row[0], new)) for row in rows]


def call_values(rows: Sequence[NewRow]) -> list[list[Any]]:
    """Return what `CALL` takes of rows without unique keys."""
    values = columns(rows)
    del values[_UNIQUE]
    return values


async def accept_early(tx: Tx, rows: Sequence[NewRow], channel: str | None) -> list[Accepted]:
    """Insert rows without unique keys: workers see them, notified on `channel`, before this waits for the disk."""
    ((ids,),) = await tx.plain(CALL, tx.clock.offset, channel, *call_values(rows))
    new = set(ids or ())
    return [Accepted(id=row[0], created=_first(row[0], new)) for row in rows]


def _first(task_id: str, new: set[str]) -> bool:
    """Say whether this is the first row with a new id: the same one again is not."""
    is_new = task_id in new
    new.discard(task_id)
    return is_new


async def _with_keys(write: Write, rows: Sequence[NewRow], new: set[str]) -> list[Accepted]:
    """Answer for rows of which some were there, or met a holder of their key."""
    answers: list[Accepted | None] = [Accepted(id=row[0]) if _first(row[0], new) else None for row in rows]
    for _ in range(_ROUNDS):
        left = [index for index, answer in enumerate(answers) if answer is None]
        if not left:
            break
        ids = [rows[index][0] for index in left]
        keys = [rows[index][_UNIQUE_KEY] for index in left if rows[index][_UNIQUE_KEY] is not None]
        found = await write(_HOLDERS, ids, keys)
        known, holders = {row[0] for row in found}, {row[1]: row[0] for row in found if row[1] is not None}
        for index in left:
            task_id, key = rows[index][0], rows[index][_UNIQUE_KEY]
            holder = task_id if task_id in known else holders.get(key)
            if holder is not None:
                answers[index] = Accepted(id=holder, created=False)
        left = [index for index in left if answers[index] is None]
        if left:  # whoever held the key has let go of it since
            again = [rows[index] for index in left]
            await write(_FREE_KEYS, sorted({row[_UNIQUE_KEY] for row in again}))
            new = {row[0] for row in await write(_INSERT, *columns(again))}
            for index in left:
                if _first(rows[index][0], new):
                    answers[index] = Accepted(id=rows[index][0])
    settled = [answer for answer in answers if answer is not None]
    if len(settled) < len(rows):
        raise BackendError("a unique key changed hands faster than it could be looked at: enqueue again")
    return settled
