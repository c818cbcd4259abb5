"""Waking up: in the same process, across processes, without the kernel's help, and after a hint that came too early."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sitq.backends.sqlite import SQLiteBackend, _hints, _operate, _wait
from sitq.core import Outcome, Result, Task, WorkerInfo
from sqlite.store_kit import PATIENCE, WORKER, completed, inside, line_of, new, start

LONG = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


async def next_task(backend: SQLiteBackend) -> str:
    """Wait for work as a worker does that never polls, settle it, and return its id."""
    async with asyncio.timeout(PATIENCE):
        while not (tasks := await backend.reserve(WORKER, 1)):
            await backend.wait_for_work(WORKER, LONG)
        await backend.settle([completed(tasks[0])])
        return tasks[0].id


WORKER_PROGRAM = """
import asyncio, sys
from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import WORKER, completed

async def main(path, count):
    async with SQLiteBackend(path) as backend:
        print("ready", flush=True)
        for _ in range(count):
            while not (tasks := await backend.reserve(WORKER, 1)):
                await backend.wait_for_work(WORKER, 3600.0)
            await backend.settle([completed(tasks[0])])

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_no_wake_up_is_lost_between_two_processes(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        with start(WORKER_PROGRAM, path, 200) as worker:
            assert await line_of(worker) == "ready"
            for number in range(200):
                await backend.enqueue_tasks([new(f"t{number}")])
                result = await backend.wait_for_result(f"t{number}", PATIENCE)
                assert result is not None, f"the worker slept through task {number}"
            assert await asyncio.to_thread(worker.wait, PATIENCE) == 0


@pytest.mark.parametrize("place", ["file", ":memory:"])
async def test_everything_that_makes_a_task_ready_wakes(
    path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wait, "_LOOK_AGAIN", ())  # only the hint itself wakes
    async with SQLiteBackend(path if place == "file" else place) as backend, backend.clone() as other:

        async def wakes(action: Awaitable[object]) -> None:
            waiting = asyncio.create_task(next_task(other))
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
            await action
            assert await waiting == "a"

        async def reserved() -> Task:
            await backend.requeue_tasks(["a"])
            [task] = await backend.reserve(WORKER, 1)
            return task

        await wakes(backend.enqueue_tasks([new("a")]))
        await wakes(backend.requeue_tasks(["a"]))
        task = await reserved()
        await wakes(backend.settle([Outcome.released(task.id, task.fence)]))
        task = await reserved()
        await wakes(backend.settle([Outcome.deferred(task.id, task.fence, 0.01)]))
        await reserved()
        await wakes(backend.abandon_worker(WORKER.id))
        await reserved()
        await wakes(backend.update_task_status("a", "queued"))
        await backend.pause_queue("default", True)
        await backend.requeue_tasks(["a"])
        await wakes(backend.pause_queue("default", False))


async def test_a_wait_ends_when_a_lease_ends(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("a")])
        await backend.reserve(WorkerInfo(id="dies", lease=0.2), 1)
        assert await next_task(backend) == "a"


async def test_what_belongs_to_other_queues_does_not_wake(path: Path) -> None:
    mail = WorkerInfo(id="mail", queues=("mail",))
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new(queue="web"), new(queue="other")])
        await backend.reserve(WorkerInfo(id="dies", queues=("web",), lease=0.0), 1)  # stalled
        waiting = asyncio.create_task(backend.wait_for_work(mail, LONG))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        await backend.enqueue_tasks([new("a", queue="mail")])
        async with asyncio.timeout(PATIENCE):
            await waiting


async def test_no_more_watches_in_the_kernel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, path: str) -> None:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(_hints.FileWatch, "__init__", full)
    async with SQLiteBackend(path) as backend, SQLiteBackend(path) as producer:
        waiting = asyncio.create_task(next_task(backend))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        await producer.enqueue_tasks([new("a")])
        assert await waiting == "a"
        assert await producer.wait_for_result("a", PATIENCE)


async def test_no_kernel_that_wakes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    async with SQLiteBackend(path) as backend:
        assert backend.poll_interval == 1.0
        waiting = asyncio.create_task(next_task(backend))
        await backend.enqueue_tasks([new("a")])
        assert await waiting == "a"


async def test_the_poll_is_rare_where_the_kernel_wakes(path: Path) -> None:
    for place in (path, ":memory:"):
        async with SQLiteBackend(place) as backend:
            assert backend.poll_interval == 5.0


async def test_a_hint_before_its_commit_is_looked_at_again(path: Path) -> None:
    async with SQLiteBackend(path) as backend, backend.clone() as other:
        connection = sqlite3.connect(path)
        waiting = asyncio.create_task(next_task(other))
        for _ in range(3):  # the first wait looks again by itself: let that pass, as far as it can be seen
            await asyncio.wait([waiting], timeout=0.2)
        await backend.enqueue_in(connection, [new("a")])
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        connection.commit()
        connection.close()
        assert await waiting == "a"


async def test_an_idle_wait_asks_the_store_a_handful_of_times(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_wait, "_LOOK_AGAIN", (0.001, 0.001))
    async with SQLiteBackend(path) as backend:
        store = backend._store
        assert store is not None
        read = store.read

        async def counted(work: object) -> object:
            asked.append(work)
            return await read(work)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "read", counted)
        await backend.wait_for_work(WORKER, 0.3)
    assert 1 <= len(asked) <= 4


@pytest.mark.parametrize("place", ["file", ":memory:"])
async def test_many_who_wait_for_results_are_served_by_one_look(
    path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    read_results = _operate.read_results

    def counted(connection: sqlite3.Connection, task_ids: Sequence[str], now: float) -> list[tuple[Any, ...]]:
        looks.append(len(task_ids))
        return read_results(connection, task_ids, now)

    monkeypatch.setattr(_operate, "read_results", counted)
    async with SQLiteBackend(path if place == "file" else place) as backend:
        await backend.enqueue_tasks([new(f"t{number}") for number in range(100)])
        waiting = [asyncio.create_task(backend.wait_for_result(f"t{number}", PATIENCE)) for number in range(100)]
        twice = asyncio.create_task(backend.wait_for_result("t0", PATIENCE))
        nobody = asyncio.create_task(backend.wait_for_result("nobody", 0.01))
        tasks = await backend.reserve(WORKER, 100)
        await backend.settle([completed(task) for task in tasks])
        results = await asyncio.gather(*waiting)
        assert [result and result.payload for result in results] == [b"value"] * 100
        assert await twice == results[0]
        assert await nobody is None
    assert max(looks) >= 100
    assert len(looks) < 20


async def test_a_wait_right_after_another_was_cancelled(path: Path) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("a")])
        first = asyncio.create_task(backend.wait_for_result("a", LONG))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        waiting = asyncio.create_task(backend.wait_for_result("a", PATIENCE))
        await backend.store_result("a", Result(task_id="a", value=1))
        result = await waiting
        assert result is not None
        assert result.status == "success"


async def test_who_waits_hears_of_a_store_that_broke(path: Path) -> None:
    async with SQLiteBackend(path) as backend, backend.clone() as other:
        await inside(backend, lambda tx: tx.connection.execute("ALTER TABLE sitq_tasks RENAME TO moved"))
        with pytest.raises(Exception, match="sitq_tasks"):
            await other.wait_for_result("a", PATIENCE)
        with pytest.raises(Exception, match="sitq_tasks"):
            await other.wait_for_work(WORKER, PATIENCE)
