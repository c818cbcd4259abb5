"""What a task costs in counts: statements, commits, hops between threads, calls of functions.

Counts do not depend on the machine's mood, so these fail only when the work itself has grown. Times are for
`scripts/bench`. The bounds leave room for other Pythons; who has a reason to raise one says so in the commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sitq import SQLiteBackend, TaskQueue, Worker
from sitq.backends.sqlite import _open

TASKS = 1_000


async def echo(value: int) -> int:
    return value


class Statements:
    """Counts what the connections of the stores opened meanwhile execute, by first words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        connect = _open.connect

        def traced(path: str, timeout: float) -> sqlite3.Connection:
            connection = connect(path, timeout)
            connection.set_trace_callback(self._note)
            return connection

        monkeypatch.setattr(_open, "connect", traced)

    def _note(self, statement: str) -> None:
        words = statement.split()
        kind = words[0]
        if kind == "UPDATE":  # SET status = o.status: the end of many tasks
            kind = "END" if words[1] == "sitq_tasks" and words[5] == "o.status," else kind
        self.counts[kind] += 1

    def clear(self) -> None:
        self.counts.clear()


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    return Statements(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine tasks wait longer for a slot than a worker may keep them, and come twice."""
    monkeypatch.setattr("sitq._session.GIVE_BACK_AFTER", 3600.0)


def path_of(folder: Path) -> str:
    return str(folder / "tasks.db")


async def fill(queue: TaskQueue, count: int = TASKS) -> None:
    await queue.enqueue_many(echo, [(number,) for number in range(count)])


async def calls_in(work: Callable[[], Coroutine[Any, Any, Any]]) -> int:
    """Return how many functions, of Python or of C, this thread calls until `work` is done."""
    count = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return count


# --- the store --------------------------------------------------------------------------------------------------------


async def test_a_bulk_enqueue_is_one_commit_and_one_insert_for_100_tasks(
    tmp_path: Path, statements: Statements
) -> None:
    async with TaskQueue(SQLiteBackend(path_of(tmp_path))) as queue:
        statements.clear()
        await fill(queue)
    assert statements.counts["BEGIN"] == statements.counts["COMMIT"] == 1
    assert statements.counts["INSERT"] == TASKS / 100
    assert statements.counts.total() <= TASKS / 100 + 4


async def test_a_single_enqueue_is_one_statement_in_one_commit(tmp_path: Path, statements: Statements) -> None:
    async with TaskQueue(SQLiteBackend(path_of(tmp_path))) as queue:
        await queue.enqueue(echo, 0)
        statements.clear()
        for number in range(10):
            await queue.enqueue(echo, number)
        assert statements.counts == {"BEGIN": 10, "INSERT": 10, "COMMIT": 10}


async def test_coroutines_share_commits(tmp_path: Path, statements: Statements) -> None:
    async with TaskQueue(SQLiteBackend(path_of(tmp_path))) as queue:

        async def some() -> None:
            for number in range(TASKS // 100):
                await queue.enqueue(echo, number)

        statements.clear()
        await asyncio.gather(*(some() for _ in range(100)))
    assert statements.counts["INSERT"] <= TASKS / 4  # usually 10 to 30
    assert statements.counts["COMMIT"] <= TASKS / 4


@pytest.mark.parametrize("slots", [10, 100])
async def test_drained_tasks_share_all_statements(tmp_path: Path, statements: Statements, slots: int) -> None:
    async with TaskQueue(SQLiteBackend(path_of(tmp_path))) as queue:
        await fill(queue)
        statements.clear()
        await Worker(queue, max_concurrency=slots).run_until_empty()
    assert 1 <= statements.counts["END"] <= TASKS / 4  # usually 20 to 60
    assert statements.counts["COMMIT"] <= TASKS / 4
    assert statements.counts.total() <= TASKS / 2  # usually 100 to 200


# --- threads ----------------------------------------------------------------------------------------------------------


async def test_an_enqueue_hops_once_to_the_writer_and_once_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    hops = 0
    call = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> asyncio.Handle:
        nonlocal hops
        hops += 1
        return call(*args, **kwargs)

    async with TaskQueue(SQLiteBackend(path_of(tmp_path))) as queue:
        await queue.enqueue(echo, 0)
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        for number in range(10):
            await queue.enqueue(echo, number)
        assert hops == 10
        await fill(queue)
        assert hops == 11


# --- functions --------------------------------------------------------------------------------------------------------


async def test_how_many_calls_an_enqueue_takes(tmp_path: Path) -> None:
    async with TaskQueue(SQLiteBackend(path_of(tmp_path))) as queue:
        await queue.enqueue(echo, 0)
        single = await calls_in(lambda: queue.enqueue(echo, 1))
        bulk = await calls_in(lambda: fill(queue)) / TASKS
    assert single <= 170  # 136 on 3.11
    assert bulk <= 65  # 51


async def test_how_many_calls_a_drained_task_takes(tmp_path: Path) -> None:
    async with TaskQueue(SQLiteBackend(path_of(tmp_path))) as queue:
        await fill(queue)
        worker = Worker(queue, max_concurrency=100)
        calls = await calls_in(worker.run_until_empty) / TASKS
    assert calls <= 125  # 98
