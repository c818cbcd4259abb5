"""Enqueue in a transaction of the caller: committed and rolled back with it, and only on a connection that fits."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sitq.backends.sqlite import SQLiteBackend
from sitq.exceptions import BackendError, UnsupportedError, ValidationError
from sqlite.store_kit import new


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
async def backend(path: Path) -> AsyncIterator[SQLiteBackend]:
    async with SQLiteBackend(path) as backend:
        yield backend


@pytest.fixture
def connection(path: Path, backend: SQLiteBackend) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE invoices (id)")
        yield connection


async def test_commit_and_rollback_take_the_task_along(backend: SQLiteBackend, connection: sqlite3.Connection) -> None:
    for task_id, end in (("kept", connection.commit), ("dropped", connection.rollback)):
        connection.execute("INSERT INTO invoices VALUES (?)", (task_id,))
        [accepted] = await backend.enqueue_in(connection, [new(task_id)])
        assert accepted.created
        assert await backend.get_task(task_id) is None
        end()
    assert await backend.get_task("kept") is not None
    assert await backend.get_task("dropped") is None
    assert connection.execute("SELECT id FROM invoices").fetchall() == [("kept",)]


async def test_rows_of_any_kind_and_unique_keys(backend: SQLiteBackend, connection: sqlite3.Connection) -> None:
    connection.row_factory = lambda cursor, row: {"row": row}
    first, again, large = await backend.enqueue_in(
        connection, [new("a", unique="k"), new("b", unique="k"), new("c", b"x" * 5000)]
    )
    connection.commit()
    assert (first.created, again.created, again.id, large.created) == (True, False, "a", True)
    assert connection.execute("SELECT 1").fetchone() == {"row": (1,)}  # as it was


async def test_an_autocommit_connection_needs_a_transaction(backend: SQLiteBackend, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(ValidationError, match="execute BEGIN IMMEDIATE"):
            await backend.enqueue_in(connection, [new("a")])
        connection.execute("BEGIN IMMEDIATE")
        await backend.enqueue_in(connection, [new("a")])
        connection.execute("COMMIT")
    assert await backend.get_task("a") is not None


async def test_a_connection_on_another_file(backend: SQLiteBackend, tmp_path: Path) -> None:
    for place in (tmp_path / "other.db", ":memory:"):
        with closing(sqlite3.connect(place)) as connection, pytest.raises(ValidationError, match="connect it to"):
            await backend.enqueue_in(connection, [new()])


async def test_a_connection_that_is_less_durable_than_the_queue(path: Path, backend: SQLiteBackend) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        with pytest.raises(ValidationError, match="PRAGMA synchronous = FULL"):
            await backend.enqueue_in(connection, [new()])
    other = path.with_name("relaxed.db")  # on one file the stronger level holds
    async with SQLiteBackend(other, durability="relaxed") as relaxed:
        with closing(sqlite3.connect(other)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            with pytest.raises(ValidationError, match="PRAGMA synchronous = NORMAL"):
                await relaxed.enqueue_in(connection, [new()])
            connection.execute("PRAGMA synchronous = NORMAL")
            await relaxed.enqueue_in(connection, [new()])


async def test_what_is_no_connection(backend: SQLiteBackend) -> None:
    with pytest.raises(ValidationError, match="not str"):
        await backend.enqueue_in("tasks.db", [new()])


async def test_it_checkpoints_no_more(backend: SQLiteBackend, connection: sqlite3.Connection) -> None:
    await backend.enqueue_in(connection, [new()])
    assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


async def test_a_lock_in_the_way(path: Path, backend: SQLiteBackend, connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO invoices VALUES (1)")
    words = "BEGIN IMMEDIATE, and connect with a timeout"
    with closing(sqlite3.connect(path, timeout=0)) as other, pytest.raises(BackendError, match=words):
        await backend.enqueue_in(other, [new()])
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA query_only = 1")
        with pytest.raises(BackendError, match="cannot be written"):
            await backend.enqueue_in(other, [new()])


async def test_a_store_in_memory_has_no_transactions() -> None:
    async with SQLiteBackend(":memory:") as backend:
        with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(UnsupportedError, match="TRANSACTION"):
            await backend.enqueue_in(connection, [new()])
