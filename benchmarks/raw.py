"""The limit: sitq's tables, indexes and statements, by plain `sqlite3` from one thread.

No event loop, no encoding, no objects; the rows are made before the clock starts. Accepting commits are synced,
the others are not, as with `durability="full"`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from benchmarks.calls import echo
from sitq._ids import new_id
from sitq.backends.sqlite._accept import accept
from sitq.backends.sqlite._many import chunks, flat
from sitq.backends.sqlite._rows import NewRow, insert_statement, new_row
from sitq.backends.sqlite._work import RESERVE, end_statement
from sitq.core import Task
from sitq.serialization import CloudpickleSerializer

__all__ = [
    "BATCH", "RESULT", "complete", "connect", "drain", "ends", "insert", "insert_one", "reserve", "rows",
    "tasks",
]  # fmt: skip

BATCH = 100
_DAY = 86_400.0
_ID, _CREATED, _FENCE = 0, 5, 10  # in a row of RESERVE
_CHANGES_PER_CHECKPOINT = 8000  # as the store does
RESULT = CloudpickleSerializer().encode_result("", 1)
"""What a no-op task returned."""


def connect(path: str) -> sqlite3.Connection:
    """Connect as the store does."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA cache_size = -16000")
    return connection


def rows(count: int, payload: bytes | None = None, queues: Sequence[str] = ("default",)) -> list[NewRow]:
    """Return rows to insert: no-op calls."""
    made = []
    for number, task in enumerate(tasks(count, payload)):
        row = new_row(task, task.created_at.timestamp())
        made.append((row[0], queues[number % len(queues)], *row[2:]))
    return made


def tasks(count: int, payload: bytes | None = None) -> list[Task]:
    """Return no-op calls."""
    now = datetime.now(UTC)
    call = payload or CloudpickleSerializer().encode_call("", "benchmarks.calls:echo", echo, (1,), {})
    return [Task(id=new_id(), name="benchmarks.calls:echo", payload=call, created_at=now) for _ in range(count)]


def insert(path: str, new: list[NewRow], batch: int) -> float:
    """Insert rows, `batch` to a commit with an fsync; return the seconds it took."""
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        start = time.perf_counter()
        for at in range(0, len(new), batch):
            connection.execute("BEGIN IMMEDIATE")
            accept(connection, new[at : at + batch], 0.0)
            connection.execute("COMMIT")
        return time.perf_counter() - start


def insert_one(connection: sqlite3.Connection, row: NewRow) -> None:
    """Insert one row in a commit of its own."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(insert_statement(1), row)
    connection.execute("COMMIT")


def drain(path: str) -> tuple[int, float]:
    """Reserve and complete everything, each batch ending the one before; return how many, and the seconds it took."""
    done = 0
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        start = time.perf_counter()
        ended: list[tuple[Any, ...]] = []
        checkpointed = 0
        while True:
            connection.execute("BEGIN IMMEDIATE")
            complete(connection, ended)
            reserved = reserve(connection, BATCH)
            connection.execute("COMMIT")
            if connection.total_changes - checkpointed > _CHANGES_PER_CHECKPOINT:
                checkpointed = connection.total_changes
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if not reserved:
                return done, time.perf_counter() - start
            done += len(reserved)
            ended = ends(reserved)


def reserve(connection: sqlite3.Connection, limit: int) -> list[tuple[Any, ...]]:
    """Reserve by the store's statement."""
    lease_now = time.clock_gettime(time.CLOCK_BOOTTIME)
    values = {"queues": None, "limit": limit, "now": time.time(), "lease_now": lease_now, "lease": 30.0, "floor": 1}
    return connection.execute(RESERVE, values | {"worker": f"raw-{os.getpid()}"}).fetchall()


def complete(connection: sqlite3.Connection, ended: list[tuple[Any, ...]]) -> None:
    """Complete by the store's statement what `ends` returned."""
    for chunk in chunks(ended):
        connection.execute(end_statement(len(chunk)), flat(chunk))


def ends(reserved: list[tuple[Any, ...]], started: float | None = None) -> list[tuple[Any, ...]]:
    """Return the values by which the store completes reserved tasks."""
    now = time.time()
    return [
        (
            2, now, _DAY, "success", RESULT, None, None, None, 1, row[_CREATED], started or now, now, row[_ID],
            row[_FENCE],
        )
        for row in reserved
    ]  # fmt: skip
