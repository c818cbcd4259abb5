"""Migrations lead forward, all or nothing; plans use an index, and cost the same with a million rows more."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sitq.backends.sqlite import SQLiteBackend, _open, _schema, _work
from sitq.backends.sqlite._work import Transaction
from sitq.core import Held, Outcome, TaskFilter, WorkerInfo
from sitq.exceptions import BackendError
from sqlite.store_kit import WORKER, completed, inside, new, statements


async def rows_of(backend: SQLiteBackend, query: str) -> list[tuple[Any, ...]]:
    return await inside(backend, lambda tx: tx.connection.execute(query).fetchall())


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        await backend.enqueue_tasks([new("old")])
    migration = "ALTER TABLE sitq_tasks ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'"
    monkeypatch.setattr(_schema, "MIGRATIONS", (*_schema.MIGRATIONS, migration))
    monkeypatch.setattr(_schema, "VERSION", _schema.VERSION + 1)
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        colours = await rows_of(backend, "SELECT id, colour FROM sitq_tasks")
        version = await inside(backend, lambda tx: _schema.version_of(tx.connection))
    assert colours == [("old", "red")]
    assert version == _schema.VERSION


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        await backend.enqueue_tasks([new("old")])
    broken = "CREATE TABLE sitq_half (a); INSERT INTO sitq_nowhere VALUES (1)"
    with monkeypatch.context() as patch:
        patch.setattr(_schema, "MIGRATIONS", (*_schema.MIGRATIONS, broken))
        patch.setattr(_schema, "VERSION", _schema.VERSION + 1)
        with pytest.raises(BackendError, match="sitq_nowhere"):
            await SQLiteBackend(tmp_path / "tasks.db").connect()
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        assert await backend.get_task("old") is not None
        tables = await rows_of(backend, "SELECT name FROM sqlite_master")
    assert ("sitq_half",) not in tables


# --- plans ------------------------------------------------------------------------------------------------------------


async def everything(backend: SQLiteBackend) -> None:
    """Do what happens to tasks all the time."""
    await backend.enqueue_tasks([new(), new(unique="key"), new(payload=b"x" * 10_000)])
    one, two, three = await backend.reserve(WORKER, 3)
    await backend.settle([completed(one)])
    await backend.settle([Outcome.deferred(two.id, two.fence, 0.0)])
    await backend.extend_leases(WORKER, [Held(id=three.id, fence=three.fence, progress=1)])
    await backend.reserve(WorkerInfo(id="other", queues=("default", "mail")), 1)
    for worker in (WORKER, WorkerInfo(id="other", queues=("default", "mail"))):
        await backend.has_active_tasks(worker)
    await backend.get_result(one.id)
    await backend.cancel_tasks([two.id])
    await backend.requeue_tasks([one.id])
    await backend.update_task_status(one.id, "failed")
    await backend.purge()


async def test_no_statement_reads_the_whole_table() -> None:
    async with SQLiteBackend(":memory:") as backend:
        seen = await statements(backend, lambda: everything(backend))
        words = ("SELECT", "UPDATE", "DELETE", "WITH")
        wanted = [text for text in dict.fromkeys(seen) if text.lstrip().startswith(words)]
        assert len(wanted) > 15
        for text in wanted:
            steps = [row[3] for row in await rows_of(backend, f"EXPLAIN QUERY PLAN {text}")]
            scans = [step for step in steps if step.startswith("SCAN sitq_tasks")]
            # Without statistics SQLite calls "all of a partial index" a scan: of running or of retried tasks.
            assert all("sitq_leases" in scan or "sitq_retrying" in scan for scan in scans), (text, steps)


@pytest.mark.parametrize("is_analyzed", [False, True])
@pytest.mark.parametrize("count", [1, 100])
async def test_settled_tasks_are_found_by_their_ids(count: int, is_analyzed: bool) -> None:
    """Also by statistics from an hour in which nothing ran, when the index of running tasks looks empty."""
    async with SQLiteBackend(":memory:") as backend:
        await inside(backend, lambda tx: fill(tx.connection, 1_000))
        if is_analyzed:
            await rows_of(backend, "ANALYZE")
        await backend.enqueue_tasks([new() for _ in range(count)])
        reserved = await backend.reserve(WORKER, count)
        seen = await statements(backend, lambda: backend.settle([completed(task) for task in reserved]))
        (settle,) = [text for text in seen if text.lstrip().startswith("UPDATE")]
        steps = [row[3] for row in await rows_of(backend, f"EXPLAIN QUERY PLAN {settle}")]
        assert [step for step in steps if "sitq_tasks" in step] == [
            "SEARCH sitq_tasks USING INDEX sqlite_autoindex_sitq_tasks_1 (id=?)"
        ]


def steps_of(connection: sqlite3.Connection, action: Any) -> int:
    """Return how many hundreds of instructions SQLite's machine takes for `action`."""
    count = [0]

    def step() -> int:
        count[0] += 1
        return 0

    connection.set_progress_handler(step, 100)
    action()
    connection.set_progress_handler(None, 0)
    return count[0]


def fill(connection: sqlite3.Connection, rows: int) -> None:
    """Add that many tasks that wait for later, and as many that have ended."""
    connection.execute(
        """
        WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)
        INSERT INTO sitq_tasks (id, queue, priority, due, created_at, name, status, purge_at)
        SELECT 'fill-' || n || '-' || ended, 'default', 0, 1e12 + n, 1, 'm:f', ended * 2, 1e12 FROM n, (
            SELECT 0 AS ended UNION ALL SELECT 1)
        """,
        (rows,),
    )


async def test_the_work_per_task_does_not_grow_with_what_waits_and_what_has_ended() -> None:
    async with SQLiteBackend(":memory:") as backend:

        async def round_trip() -> int:
            await backend.enqueue_tasks([new() for _ in range(50)])

            def measured(tx: Transaction) -> int:
                rows: list[tuple[Any, ...]] = []
                cost = steps_of(tx.connection, lambda: rows.extend(_work.reserve(tx, WORKER, 50)))
                outcomes = [Outcome.released(row[0], row[10], delay=1e12) for row in rows]
                assert len(rows) == 50
                cost += steps_of(tx.connection, lambda: _work.settle(tx, outcomes))
                active: list[bool] = []
                cost += steps_of(
                    tx.connection, lambda: active.append(_work.has_active(tx.connection, WORKER, tx.clock))
                )
                assert active == [False]
                return cost

            return await inside(backend, measured)

        empty = await round_trip()
        await inside(backend, lambda tx: fill(tx.connection, 20_000))
        full = await round_trip()
    assert empty > 20
    assert full <= empty * 1.1


# --- boots ------------------------------------------------------------------------------------------------------------


async def test_another_boot_voids_all_leases_and_no_fence_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tasks.db"
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("a")])
        [before] = await backend.reserve(WORKER, 1)
        assert await backend.reserve(WORKER, 1) == []
    async with SQLiteBackend(path) as backend:  # the same boot
        assert await backend.reserve(WORKER, 1) == []
    monkeypatch.setattr(_open, "boot_id", lambda: "another")
    async with SQLiteBackend(path) as backend:
        assert await backend.list_workers() == []
        [after] = await backend.reserve(WORKER, 1)
        assert after.crashes == 1
        assert before.fence is not None
        assert after.fence is not None
        assert after.fence >> 32 == (before.fence >> 32) + 1
        assert await backend.settle([completed(before), completed(after)]) == [False, True]


async def test_a_call_of_many_bytes_lies_beside_the_table_and_goes_with_its_task(tmp_path: Path) -> None:
    large = b"x" * 900_000
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        await backend.enqueue_tasks([new("small"), new("large", large), new("other")])
        await backend.enqueue_tasks([new("large", large)])  # again
        [small, taken, _] = await backend.reserve(WORKER, 3)
        stored = await backend.get_task("large")
        assert stored is not None
        assert (taken.payload, stored.payload, small.payload) == (large, large, b"call")
        assert await rows_of(backend, "SELECT count(*) FROM sitq_payloads") == [(1,)]
        pages = await rows_of(backend, "PRAGMA page_count")
        await backend.settle([completed(taken)])
        assert await rows_of(backend, "PRAGMA page_count") == pages
        assert await backend.purge(TaskFilter()) == 1
        assert await rows_of(backend, "SELECT count(*) FROM sitq_payloads") == [(0,)]
