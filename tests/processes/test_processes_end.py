"""How a child process ends: by its task, by the worker's hand, or with its worker; and what becomes of the task."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import chores
import sitq
from sitq import Event, Result, SQLiteBackend, Task, TaskFailedError, TaskHandle, TaskQueue, Worker
from sitq._execute import Run
from sitq._processes import ProcessPool
from sitq.backends.base import Backend
from sitq.core import ReservedTask, WorkerInfo
from waiting import DEADLINE, until

FOLDERS = [str(Path(sitq.__file__).parents[1]), str(Path(chores.__file__).parent)]


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db")) as queue:
        yield queue


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended, and that nobody has waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def number_in(file: Path) -> int | None:
    text = file.read_text(encoding="ascii") if file.exists() else ""
    return int(text) if text else None


async def in_process(queue: TaskQueue, function: Callable[..., Any], *args: Any, **options: Any) -> TaskHandle[Any]:
    return await queue.options(executor="process", **options).enqueue(function, *args)


async def reason_of(handle: TaskHandle[Any]) -> str | None:
    with pytest.raises(TaskFailedError) as caught:
        await handle.result(timeout=DEADLINE)
    return caught.value.result.reason


# --- by its task ------------------------------------------------------------------------------------------------------


async def test_tasks_that_end_their_process_are_quarantined_and_their_neighbours_are_not(backend: Backend) -> None:
    quarantined: list[Event] = []
    async with TaskQueue(backend) as queue:
        queue.on("quarantined", quarantined.append)
        good = [await in_process(queue, chores.pid) for _ in range(20)]
        bad = [await in_process(queue, harm) for harm in (chores.segfault, chores.leave)]
        good += [await in_process(queue, chores.pid) for _ in range(20)]
        async with Worker(queue, max_concurrency=4):
            assert [await reason_of(handle) for handle in bad] == ["quarantined"] * 2
            pids = {await handle.result(timeout=DEADLINE) for handle in good}
        tasks = [await queue.get_task(handle) for handle in bad]
        neighbours = [await queue.get_task(handle) for handle in good]
    assert os.getpid() not in pids
    assert [(task.crashes, task.solo_crashes, task.attempt) for task in tasks if task] == [(3, 3, 4)] * 2
    assert {(task.crashes, task.attempt) for task in neighbours if task} == {(0, 1)}
    assert {event.task_id for event in quarantined} == set(bad)


class ObjectStore(Backend):
    """Six methods around a dict, as the page for authors shows: it remembers neither delays nor crashes."""

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[Task, Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {}
        self.results: dict[str, Result] = {}
        self.reserved: list[str] = []

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.tasks[task.id] = (task, function, args, kwargs)

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        reserved: list[ReservedTask] = []
        for task, function, args, kwargs in self.tasks.values():
            if task.status == "queued" and len(reserved) < max_tasks:
                task.status = "running"
                self.reserved.append(task.id)
                reserved.append(ReservedTask(id=task.id, function=function, args=args, kwargs=kwargs))
        return reserved

    async def get_task(self, task_id: str) -> Task | None:
        return self.tasks[task_id][0] if task_id in self.tasks else None

    async def update_task_status(self, task_id: str, status: str) -> None:
        self.tasks[task_id][0].status = status

    async def store_result(self, task_id: str, result: Result) -> None:
        self.results[task_id] = result

    async def get_result(self, task_id: str) -> Result | None:
        return self.results.get(task_id)


async def test_a_store_of_objects_that_remembers_nothing_has_its_crashes_counted_by_the_worker() -> None:
    store = ObjectStore()
    async with TaskQueue(store) as queue:
        good, bad = await in_process(queue, chores.pid), await in_process(queue, chores.leave)
        async with Worker(queue):
            assert await reason_of(bad) == "quarantined"
            assert await good.result(timeout=DEADLINE) != os.getpid()
    assert store.reserved.count(bad) == 1
    assert store.results[bad].error == "ended its process 3 times"


async def test_a_fork_that_lives_on_hides_nothing(queue: TaskQueue, tmp_path: Path) -> None:
    deferred: list[Event] = []
    queue.on("deferred", deferred.append)
    forks: list[int] = []

    async def crashed_again() -> bool:
        pid = number_in(tmp_path / "fork")
        if pid is not None and pid not in forks:
            forks.append(pid)
        return len(deferred) == 3

    handle = await in_process(queue, chores.leave_a_fork_behind, str(tmp_path / "fork"))
    async with Worker(queue):
        await until(crashed_again)
        assert await reason_of(handle) == "quarantined"
    for pid in forks:
        os.kill(pid, signal.SIGKILL)
    assert [event.reason for event in deferred] == ["crashed"] * 3


async def suspect(queue: TaskQueue, function: Callable[..., Any], *args: Any) -> TaskHandle[Any]:
    """Enqueue a task, and have a worker die while it holds it."""
    handle = await queue.enqueue(function, *args)
    (reserved,) = await queue.backend.reserve(WorkerInfo(id="dead"), 1)
    assert reserved.id == handle
    assert await queue.backend.abandon_worker("dead") == 1
    return handle


@pytest.mark.parametrize("function", [chores.pid, chores.async_pid])
async def test_a_task_whose_worker_died_runs_apart(function: Callable[..., Any], backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        handle = await suspect(queue, function)
        async with Worker(queue):
            assert await handle.result(timeout=DEADLINE) != os.getpid()
        task = await queue.get_task(handle)
    assert task is not None
    assert (task.crashes, task.solo_crashes, task.attempt) == (1, 0, 2)


async def test_a_suspect_that_cannot_cross_runs_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()

    async def layer(current: Any, call_next: Any) -> Any:
        with lock:
            return await call_next()

    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db"), middleware=[layer]) as queue:
        handle = await suspect(queue, chores.pid)
        async with Worker(queue):
            assert await handle.result(timeout=DEADLINE) == os.getpid()
    assert "may have ended a worker" in caplog.text


async def test_a_suspect_is_guilty_only_of_what_it_does_alone(queue: TaskQueue) -> None:
    handle = await suspect(queue, chores.leave)
    async with Worker(queue):
        assert await reason_of(handle) == "quarantined"
    task = await queue.get_task(handle)
    assert task is not None
    assert (task.crashes, task.solo_crashes) == (4, 3)


# --- by the worker's hand ---------------------------------------------------------------------------------------------


async def test_a_timeout_kills_what_does_not_listen(queue: TaskQueue, tmp_path: Path) -> None:
    async with Worker(queue):
        await (await in_process(queue, chores.pid)).result(timeout=DEADLINE)  # a child that is there, for the next task
        handle = await in_process(queue, chores.spin, str(tmp_path / "pid"), timeout=2)
        assert await reason_of(handle) == "timeout"
        pid = number_in(tmp_path / "pid")
        assert pid is not None
        assert not is_alive(pid)


async def test_a_timeout_follows_the_retry_rules(queue: TaskQueue, tmp_path: Path) -> None:
    handle = await in_process(
        queue, chores.spin, str(tmp_path / "pid"), timeout=0.05, retry=sitq.Retry(max_attempts=2, base=0)
    )
    async with Worker(queue):
        assert await reason_of(handle) == "timeout"
    result = await queue.get_result(handle)
    assert result is not None
    assert result.attempts == 2


async def test_an_async_function_may_clean_up_at_its_timeout_and_its_child_goes_on(
    queue: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sitq._processes._AFTER_TIMEOUT", 60.0)
    handle = await in_process(queue, chores.nap, str(tmp_path / "pid"), timeout=0.05)
    async with Worker(queue, max_concurrency=1):
        assert await reason_of(handle) == "timeout"
        assert await (await in_process(queue, chores.pid)).result(timeout=DEADLINE) == number_in(tmp_path / "pid")


@pytest.mark.parametrize("function", [chores.spin, chores.hold_the_gil])
async def test_a_cancel_kills_and_the_slot_is_free(
    queue: TaskQueue, tmp_path: Path, function: Callable[..., Any]
) -> None:
    handle = await in_process(queue, function, str(tmp_path / "pid"))
    async with Worker(queue, max_concurrency=1):
        await until(lambda: number_in(tmp_path / "pid") is not None)
        pid = number_in(tmp_path / "pid")
        assert await queue.cancel(handle) == "requested"
        assert await reason_of(handle) == "cancelled"
        assert pid is not None
        assert not is_alive(pid)
        assert await (await in_process(queue, chores.pid)).result(timeout=DEADLINE) != pid


async def test_the_end_of_the_grace_kills_and_gives_back(queue: TaskQueue, tmp_path: Path) -> None:
    handle = await in_process(queue, chores.spin, str(tmp_path / "pid"))
    async with Worker(queue, grace=0.01):
        await until(lambda: number_in(tmp_path / "pid") is not None)
    task, pid = await queue.get_task(handle), number_in(tmp_path / "pid")
    assert task is not None
    assert (task.status, task.attempt, task.crashes) == ("queued", 0, 0)
    assert pid is not None
    assert not is_alive(pid)


async def test_a_lost_lease_kills(queue: TaskQueue, tmp_path: Path) -> None:
    lost: list[Event] = []
    queue.on("lease_lost", lost.append)
    handle = await in_process(queue, chores.spin, str(tmp_path / "pid"))
    async with Worker(queue):
        await until(lambda: number_in(tmp_path / "pid") is not None)
        pid = number_in(tmp_path / "pid")
        await queue.backend.update_task_status(handle, "failed")
        await until(lambda: bool(lost))
        assert pid is not None
        assert not is_alive(pid)
    assert lost[0].task_id == handle


async def test_a_signal_to_all_of_the_group_leaves_the_children_to_the_worker(queue: TaskQueue, tmp_path: Path) -> None:
    handle = await in_process(queue, chores.report, str(tmp_path))
    async with Worker(queue, max_concurrency=1):

        async def started() -> bool:
            task = await queue.get_task(handle)
            return task is not None and task.progress is not None

        await until(started)
        for child in children_of(os.getpid()):
            os.kill(child, signal.SIGINT)
            os.kill(child, signal.SIGTERM)
        (tmp_path / "go").touch()
        await handle.result(timeout=DEADLINE)
    task = await queue.get_task(handle)
    assert task is not None
    assert task.crashes == 0


# --- with its worker --------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, sys
from sitq import TaskQueue, Worker
asyncio.run(Worker(TaskQueue("sqlite:///" + sys.argv[1])).start())
"""


@pytest.mark.parametrize("function", [chores.spin, chores.hold_the_gil, chores.nap])
async def test_a_child_ends_with_its_worker_whatever_it_is_doing(
    queue: TaskQueue, tmp_path: Path, function: Callable[..., Any]
) -> None:
    started = tmp_path / "pid"
    handle = await in_process(queue, function, str(started))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(FOLDERS)}
    worker = subprocess.Popen([sys.executable, "-c", WORKER, "/" + str(tmp_path / "tasks.db")], env=env)  # noqa: ASYNC220
    try:

        async def running() -> bool:
            task = await queue.get_task(handle)
            return task is not None and task.status == "running" and bool(children_of(worker.pid))

        await until(running)
        if function is not chores.nap:  # which writes at its end
            await until(lambda: number_in(started) is not None)
        (child,) = children_of(worker.pid)
    finally:
        worker.kill()
        worker.wait()
    await until(lambda: not is_alive(child), "the end of the child")


async def test_a_child_ends_with_its_pipe_though_its_worker_lives(
    queue: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no kernel tells a child of its parent's death, and when only the pipe is lost."""
    monkeypatch.setattr("sitq._processes._Child.end", _hang_up)
    pool = ProcessPool(queue, queue.serializer)
    await in_process(queue, chores.spin, str(tmp_path / "pid"))
    (reserved,) = await queue.backend.reserve(WorkerInfo(id="w"), 1)
    running = asyncio.create_task(pool.run(Run(reserved, 0.0, 60.0)))
    await until(lambda: number_in(tmp_path / "pid") is not None)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    pid = number_in(tmp_path / "pid")
    assert pid is not None
    await until(lambda: not is_alive(pid), "the end of the child")


async def _hang_up(child: Any, kill: bool) -> None:
    child._writer.close()
    await child._writer.wait_closed()


def children_of(pid: int) -> list[int]:
    listings = [_read(path) for path in Path(f"/proc/{pid}/task").glob("*/children")]
    pids = [int(child) for listing in listings for child in listing.split()]
    return [pid for pid in pids if "sitq._child" in _read(Path(f"/proc/{pid}/cmdline"))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # it has ended in the meantime
        return ""
