"""The writer: how durable each batch is, what errors become, what is given back, how the log stays small."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from sitq.backends.sqlite import SQLiteBackend, _threads
from sitq.backends.sqlite._store import _stores
from sitq.backends.sqlite._work import Transaction
from sitq.core import Result, TaskFilter
from sitq.exceptions import BackendError, TaskNotFoundError
from sqlite.store_kit import WORKER, completed, handed_in, inside, line_of, new, start, statements


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


class Held:
    """Keeps the writer inside a transaction until it is let go."""

    def __init__(self) -> None:
        self.inside, self.gate = threading.Event(), threading.Event()

    def __call__(self, tx: Transaction) -> None:
        self.inside.set()
        self.gate.wait(60)


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_among_many_new_tasks_those_that_are_there_are_told_apart(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        there = {f"task-{number}" for number in (0, 7, 99, 100, 130, 136)}
        await backend.enqueue_tasks([new(task_id, payload=b"first") for task_id in sorted(there)])
        accepted = await backend.enqueue_tasks([new(f"task-{number}", payload=b"then") for number in range(137)])
        assert [item.id for item in accepted] == [f"task-{number}" for number in range(137)]
        assert {item.id for item in accepted if not item.created} == there
        stored = {task.id: task.payload for task in await backend.reserve(WORKER, 200)}
        assert {task_id for task_id, payload in stored.items() if payload == b"first"} == there
        assert len(stored) == 137


async def test_among_many_outcomes_each_is_judged_by_its_fence(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new() for _ in range(137)])
        reserved = await backend.reserve(WORKER, 137)
        settled, lost, large = reserved[3], reserved[50], reserved[60]
        assert await backend.settle([completed(settled)]) == [True]
        await backend.update_task_status(lost.id, "failed")
        outcomes = [completed(task, b"x" * 10_000 if task is large else b"value") for task in reserved]
        assert await backend.settle(outcomes) == [task is not lost for task in reserved]
        results = [await backend.get_result(task.id) for task in reserved]
        sizes = [len(result.payload or b"") if result else None for result in results]
        assert sizes == [None if task is lost else 10_000 if task is large else 5 for task in reserved]


# --- durability -------------------------------------------------------------------------------------------------------


async def test_the_stronger_durability_holds_for_all_handles_of_a_process(path: Path) -> None:
    async with SQLiteBackend(path, durability="relaxed") as one, SQLiteBackend(path, durability="strict") as other:
        assert one._store is other._store
        level = await inside(one, lambda tx: tx.connection.execute("PRAGMA synchronous").fetchone()[0])
    assert level == 2


async def test_handles_and_clones_share_one_writer_that_ends_with_the_last(path: Path) -> None:
    before = threading.active_count()
    one, other = SQLiteBackend(path), SQLiteBackend(str(path.parent / "." / path.name))
    clone = one.clone()
    for backend in (one, other, clone):
        await backend.connect()
    assert threading.active_count() == before + 2  # a writer and a reader
    await one.close()
    await other.close()
    assert await clone.enqueue_tasks([new()])
    await clone.close()
    assert not _stores


async def test_concurrent_enqueues_share_commits(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        seen = await statements(backend, lambda: asyncio.gather(*(backend.enqueue_tasks([new()]) for _ in range(400))))
    assert seen.count("COMMIT") < 40


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_one_bad_row_fails_alone(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        hold = Held()
        held = asyncio.create_task(inside(backend, hold))
        await asyncio.to_thread(hold.inside.wait, 60)
        unknown = asyncio.ensure_future(backend.store_result("nobody", Result(task_id="nobody", status="failed")))
        enqueues = [asyncio.ensure_future(backend.enqueue_tasks([new(name)])) for name in ("a", "\udc80", "b")]
        await asyncio.sleep(0)
        hold.gate.set()
        await asyncio.gather(held, unknown, *enqueues, return_exceptions=True)
        bad = enqueues[1].exception()
        assert isinstance(bad, BackendError)
        assert isinstance(bad.__cause__, UnicodeEncodeError)
        assert isinstance(unknown.exception(), TaskNotFoundError)
        assert [enqueues[index].result()[0].created for index in (0, 2)] == [True, True]
        assert {task.id for task in await backend.list_tasks()} == {"a", "b"}


async def test_an_enqueue_of_many_is_all_or_nothing(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        with pytest.raises(BackendError):
            await backend.enqueue_tasks([new("a"), new("b"), new("\udc80")])
        assert await backend.list_tasks() == []


async def test_ids_that_are_there_are_told_from_new_ones(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("b"), new("d")])
        accepted = await backend.enqueue_tasks([new(task_id) for task_id in "abcdea"])
    assert [(item.id, item.created) for item in accepted] == [
        ("a", True), ("b", False), ("c", True), ("d", False), ("e", True), ("a", False),
    ]  # fmt: skip


async def test_a_writer_waits_for_another_process(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(backend.enqueue_tasks([new()]))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        assert await backend.get_task("nobody") is None  # reads go on
        other.execute("COMMIT")
        other.close()
        assert (await waiting)[0].created


async def test_a_lock_that_is_never_let_go_becomes_a_clear_error(path: Path) -> None:
    async with SQLiteBackend(path, busy_timeout=0.05) as backend:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendError, match=r"write lock .* busy_timeout") as caught:
            await backend.enqueue_tasks([new()])
        other.close()
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert (await backend.enqueue_tasks([new()]))[0].created


async def test_a_full_disk_becomes_a_clear_error(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await inside(backend, lambda tx: tx.connection.execute("PRAGMA max_page_count = 30").fetchone())
        with pytest.raises(BackendError, match="no space left: free some") as caught:
            await backend.enqueue_tasks([new(payload=b"x" * 500_000)])
        assert isinstance(caught.value.__cause__, sqlite3.Error)
        assert (await backend.enqueue_tasks([new("small")]))[0].created


def damage(path: Path) -> None:
    """Overwrite most of a database that no connection of this process has open."""
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(path.stat().st_size - 4096 * 3))


async def test_a_damaged_file_becomes_a_clear_error(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new(f"t{number}", b"x" * 1000) for number in range(300)])
    damage(path)
    async with SQLiteBackend(path) as backend:
        with pytest.raises(BackendError, match="damaged: restore a backup"):
            await backend.list_tasks(TaskFilter(), 1000)


# --- given back -------------------------------------------------------------------------------------------------------


async def test_a_reservation_nobody_waits_for_is_given_back_at_no_cost(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("a"), new("b")])
        hold, hold_again = Held(), Held()
        first = asyncio.create_task(inside(backend, hold))
        await asyncio.to_thread(hold.inside.wait, 60)
        reserving = asyncio.create_task(backend.reserve(WORKER, 2))
        second = asyncio.create_task(inside(backend, hold_again))
        await handed_in()
        hold.gate.set()
        await asyncio.to_thread(hold_again.inside.wait, 60)  # the reservation is made, and not committed yet
        reserving.cancel()
        await asyncio.sleep(0)
        hold_again.gate.set()
        await asyncio.gather(first, second)
        tasks = await backend.reserve(WORKER, 2) or await backend.reserve(WORKER, 2)
    assert [(task.id, task.attempt) for task in tasks] == [("a", 1), ("b", 1)]


async def test_a_reservation_for_a_loop_that_has_ended_is_given_back(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("a")])
        hold = Held()
        held = asyncio.create_task(inside(backend, hold))
        await asyncio.to_thread(hold.inside.wait, 60)

        async def reserve_and_leave() -> None:
            task = asyncio.ensure_future(backend.reserve(WORKER, 1))
            await handed_in()
            asyncio.get_running_loop().stop()
            del task

        def other_loop() -> None:
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending": that is the point
            task = loop.create_task(reserve_and_leave())
            loop.run_forever()
            loop.close()
            del task

        await asyncio.to_thread(other_loop)
        hold.gate.set()
        await held
        [task] = await backend.reserve(WORKER, 1) or await backend.reserve(WORKER, 1)
    assert task.attempt == 1


# --- the log ----------------------------------------------------------------------------------------------------------


async def test_the_log_does_not_grow_without_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_BYTES_PER_CHECKPOINT", 256 * 1024)
    wal = path.with_name(path.name + "-wal")
    async with SQLiteBackend(path, durability="relaxed") as backend:
        for _ in range(60):
            await backend.enqueue_tasks([new(payload=b"x" * 100_000)])
        assert wal.stat().st_size < 2 * 1024 * 1024


async def test_only_one_process_checkpoints_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "_CHANGES_PER_CHECKPOINT", 1)
    program = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""
    async with SQLiteBackend(path) as backend:
        action = lambda: backend.enqueue_tasks([new()])  # noqa: E731
        assert any("wal_checkpoint" in text for text in await statements(backend, action))
        with start(program, f"{path}-ckpt") as other:
            assert await line_of(other) == "locked"
            assert not any("wal_checkpoint" in text for text in await statements(backend, action))
            other.communicate("\n")
        assert any("wal_checkpoint" in text for text in await statements(backend, action))
