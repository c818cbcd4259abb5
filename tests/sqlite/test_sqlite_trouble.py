"""Opening at the same time, event loops that end, and one caller's trouble that is nobody else's."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any, cast

import pytest

from sitq import BackendError, Result, SQLiteBackend, TaskQueue, ValidationError
from sitq.backends.sqlite._threads import Writer
from sqlite.store_kit import inside, new


async def test_callers_that_come_at_the_same_time_all_wait_for_the_opening(tmp_path: Path) -> None:
    queue = TaskQueue(SQLiteBackend(tmp_path / "tasks.db"))
    assert await asyncio.gather(*(queue.get_result("nobody", timeout=0.01) for _ in range(5))) == [None] * 5
    await queue.close()


async def test_callers_that_come_at_the_same_time_all_hear_why_it_cannot_be_opened(tmp_path: Path) -> None:
    queue = TaskQueue(SQLiteBackend(tmp_path / "missing" / "tasks.db"))
    for _ in range(2):
        answers = await asyncio.gather(*(queue.get_task("x") for _ in range(3)), return_exceptions=True)
        assert ["does not exist" in str(answer) for answer in answers] == [True] * 3
    (tmp_path / "missing").mkdir()
    assert await queue.get_task("x") is None
    await queue.close()


async def test_a_cancelled_first_caller_takes_the_store_from_nobody(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "tasks.db")
    first = asyncio.create_task(backend.connect())
    second = asyncio.create_task(backend.get_task("x"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None
    await asyncio.gather(first, return_exceptions=True)
    await backend.close()


def test_an_ended_event_loop_leaves_no_watch_behind(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "tasks.db")
    queue = TaskQueue(backend)

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    def once() -> None:
        asyncio.run(queue.get_result("nobody", timeout=0.001))

    once()
    before = descriptors()
    for _ in range(10):
        once()
    assert descriptors() <= before + 1
    asyncio.run(queue.close())


async def test_a_callers_connection_must_keep_what_the_store_promises(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    async with SQLiteBackend(path, durability="strict"), SQLiteBackend(path, durability="relaxed") as relaxed:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        with pytest.raises(ValidationError, match="synchronous"):
            await relaxed.enqueue_in(connection, [new("a")])
        connection.close()


async def test_bad_values_of_one_caller_fail_no_other_of_the_batch(tmp_path: Path) -> None:
    odd: Any = "not a moment"
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        await backend.enqueue_tasks([new("a"), new("b")])
        bad, good = await asyncio.gather(
            backend._write_result("a", Result(task_id="a", finished_at=odd)),
            backend._write_result("b", Result(task_id="b", error="fine")),
            return_exceptions=True,
        )
        assert isinstance(bad, BackendError)
        assert good is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the test process has threads; its child only exits
def test_a_reopening_that_fails_after_a_fork_is_tried_again(tmp_path: Path) -> None:
    folder, aside = tmp_path / "store", tmp_path / "aside"
    folder.mkdir()
    queue = TaskQueue(SQLiteBackend(folder / "tasks.db"))

    async def enqueue() -> str:
        return await queue.options(delay=60).enqueue(max, 1, 2)

    first = asyncio.run(enqueue())
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    folder.rename(aside)
    with pytest.raises(BackendError, match="does not exist"):
        asyncio.run(enqueue())
    shutil.move(aside, folder)
    second = asyncio.run(enqueue())

    async def look() -> list[bool]:
        found = [await queue.get_task(task_id) is not None for task_id in (first, second)]
        await queue.close()
        return found

    assert asyncio.run(look()) == [True, True]


@pytest.mark.parametrize("due", [1e12, float("inf"), -1e12])
async def test_a_moment_no_calendar_knows_is_shown_as_the_furthest(tmp_path: Path, due: float) -> None:
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        await backend.enqueue_tasks([new("a")])
        past = min(due, 0.0)
        await inside(
            backend, lambda tx: tx.connection.execute("UPDATE sitq_tasks SET due = ?, created_at = ?", (due, past))
        )
        task = await backend.get_task("a")
        assert task is not None
        assert [found.id for found in await backend.list_tasks()] == ["a"]
        assert task.eta is None if due < 0 else task.eta is not None and task.eta.year == 9999
        for hours in (-14, 14):
            moments = [moment for moment in (task.eta, task.created_at) if moment is not None]
            assert all(
                moment.astimezone(timezone(timedelta(hours=hours))).year in {1, 1969, 1970, 9999} for moment in moments
            )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_handle_opens_again_after_its_writer_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise SystemExit  # which nothing catches

    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db")) as queue:
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "tidy", fail)
            first = await queue.options(delay=60).enqueue(max, 1, 2)
            store = cast("SQLiteBackend", queue.backend)._store
            assert store is not None
            await asyncio.wrap_future(store._writer.closed)
        second = await queue.options(delay=60).enqueue(max, 1, 2)
        assert [await queue.get_task(task_id) is not None for task_id in (first, second)] == [True, True]


async def test_what_cannot_be_opened_is_a_backend_error(tmp_path: Path) -> None:
    (tmp_path / "tasks.db-wake").mkdir()
    with pytest.raises(BackendError):
        await SQLiteBackend(tmp_path / "tasks.db").connect()
