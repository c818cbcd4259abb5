"""New tasks: written many at a time, each answered with whether it is new."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby

from sitq.backends.sqlite._many import chunks, flat
from sitq.backends.sqlite._rows import NewRow, insert_statement
from sitq.backends.sqlite._schema import INLINE
from sitq.core import Accepted

__all__ = ["accept"]

_UNIQUE_KEY, _PAYLOAD = 9, 11

_HOLDER = "SELECT id FROM sitq_tasks WHERE unique_key = ?"
_FREE_KEY = """
UPDATE sitq_tasks SET unique_key = NULL
WHERE unique_key = ? AND unique_until <= ? AND (status >= 2 OR (status = 0 AND expires <= ?))
"""
_INSERT_PAYLOAD = "INSERT INTO sitq_payloads (seq, payload) SELECT seq, ? FROM sitq_tasks WHERE id = ?"


def accept(connection: sqlite3.Connection, rows: Sequence[NewRow], now: float) -> list[Accepted]:
    """Insert rows, in order, inside the transaction that is open."""
    accepted: list[Accepted] = []
    for is_plain, group in groupby(rows, key=_is_plain):
        insert = _insert_many if is_plain else _insert_each
        accepted += insert(connection, list(group), now)
    return accepted


def _is_plain(row: NewRow) -> bool:
    return row[_UNIQUE_KEY] is None and (row[_PAYLOAD] is None or len(row[_PAYLOAD]) <= INLINE)


def _insert_many(connection: sqlite3.Connection, rows: list[NewRow], _now: float = 0.0) -> list[Accepted]:
    """Insert rows, many to a statement; one that meets an id that is there does nothing, and its rows go alone."""
    accepted: list[Accepted] = []
    for chunk in chunks(rows):
        try:
            connection.execute(insert_statement(len(chunk)), flat(chunk))
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorname != "SQLITE_CONSTRAINT_UNIQUE":
                raise
            if len(chunk) == 1:
                accepted.append(Accepted(id=chunk[0][0], created=False))
            else:
                for row in chunk:
                    accepted += _insert_many(connection, [row])
        else:
            accepted += [Accepted(id=row[0]) for row in chunk]
    return accepted


def _insert_each(connection: sqlite3.Connection, rows: list[NewRow], now: float) -> Iterable[Accepted]:
    """Insert rows that have a unique key, or a payload that lies beside the table."""
    for row in rows:
        if row[_UNIQUE_KEY] is not None:
            connection.execute(_FREE_KEY, (row[_UNIQUE_KEY], now, now))
            known = connection.execute("SELECT id FROM sitq_tasks WHERE id = ?", (row[0],)).fetchone()
            holder = known or connection.execute(_HOLDER, (row[_UNIQUE_KEY],)).fetchone()
            if holder is not None:
                yield Accepted(id=holder[0], created=False)
                continue
        payload = row[_PAYLOAD]
        beside = payload is not None and len(payload) > INLINE
        [accepted] = _insert_many(connection, [(*row[:_PAYLOAD], None) if beside else row])
        if beside and accepted.created:
            connection.execute(_INSERT_PAYLOAD, (payload, row[0]))
        yield accepted
