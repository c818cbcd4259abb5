"""The tables of a SQLite store, and how an older file becomes a current one.

One table holds a task from enqueue to purge. `seq` is the order of arrival; `status` is 0 queued, 1 running, 2
completed, 3 failed. `due`, `expires`, `purge_at`, `unique_until` and the `*_at` columns are wall-clock seconds;
`lease_until` is on the lease clock (`_clock`). Every index is partial, so a row is only in those its status needs. A
call of more than `INLINE` bytes lies beside the table: a change of status rewrites its row, and not the call.
"""

from __future__ import annotations

import sqlite3

from sitq.exceptions import SchemaError

__all__ = ["APPLICATION_ID", "INLINE", "VERSION", "migrate", "too_new", "version_of"]

APPLICATION_ID = int.from_bytes(b"sitq")  # `file tasks.db` shows it
INLINE = 2048

_FIRST = """
CREATE TABLE sitq_meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO sitq_meta VALUES ('version', 0), ('boot', ''), ('epoch', 0);

CREATE TABLE sitq_tasks (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    status INTEGER NOT NULL DEFAULT 0,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    due REAL NOT NULL,
    created_at REAL NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    solo_crashes INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    worker_id TEXT,
    lease_until REAL,
    reserved_at REAL,
    purge_at REAL,
    expires REAL,
    retention REAL,
    unique_key TEXT,
    unique_until REAL,
    name TEXT NOT NULL,
    options TEXT,
    reason TEXT,
    progress TEXT,
    outcome TEXT,
    attempts INTEGER,
    enqueued_at REAL,
    started_at REAL,
    finished_at REAL,
    error TEXT,
    payload BLOB,
    result BLOB,
    traceback TEXT
);
CREATE INDEX sitq_ready ON sitq_tasks (queue, priority, due) WHERE status = 0;
CREATE INDEX sitq_leases ON sitq_tasks (lease_until) WHERE status = 1;
CREATE INDEX sitq_ended ON sitq_tasks (purge_at) WHERE status >= 2;
CREATE INDEX sitq_expiring ON sitq_tasks (expires) WHERE status = 0 AND expires IS NOT NULL;
CREATE UNIQUE INDEX sitq_unique ON sitq_tasks (unique_key) WHERE unique_key IS NOT NULL;

CREATE TABLE sitq_payloads (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE sitq_queues (queue TEXT PRIMARY KEY, paused INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sitq_workers (
    id TEXT PRIMARY KEY, queues TEXT, lease REAL NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    started_at REAL NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
"""

_RETRYING = "CREATE INDEX sitq_retrying ON sitq_tasks (queue) WHERE status = 0 AND attempt > 0"

MIGRATIONS: tuple[str, ...] = (_FIRST, _RETRYING)
"""Each script leads from the version of its index to the next. They are never edited once released, only added to."""

VERSION = len(MIGRATIONS)


def version_of(connection: sqlite3.Connection) -> int | None:
    """Return the version of the queue in a database; None if it holds none. Writes nothing."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sitq_meta'").fetchone()
    if found is None:
        return None
    return int(connection.execute("SELECT value FROM sitq_meta WHERE key = 'version'").fetchone()[0])


def too_new(path: str, version: int) -> SchemaError:
    """Return the error for a file that a newer sitq has migrated."""
    return SchemaError(
        f"{path} was written by a newer sitq (schema {version}, this one knows {VERSION}): upgrade sitq here"
    )


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the database to `VERSION`, inside the transaction that is open."""
    version = version_of(connection) or 0
    if version > VERSION:
        raise too_new(path, version)
    if version == VERSION:
        return
    for script in MIGRATIONS[version:]:
        for statement in script.split(";"):
            connection.execute(statement)
    connection.execute("UPDATE sitq_meta SET value = ? WHERE key = 'version'", (VERSION,))
