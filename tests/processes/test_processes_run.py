"""`executor="process"`: the same pipeline in a child process, and what crosses to it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import chores
import sitq
from sitq import JsonSerializer, SignedSerializer, SQLiteBackend, TaskFailedError, TaskQueue, Worker
from sitq._memory import rss
from sitq._processes import ProcessPool
from sitq.backends.base import Backend
from waiting import until

SOURCES = str(Path(sitq.__file__).parents[1])


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[TaskQueue]:
    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db")) as queue:
        yield queue


async def run(queue: TaskQueue, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run one task in a child process and return its value."""
    handle = await queue.options(executor="process", **options).enqueue(function, *args)
    async with Worker(queue):
        return await handle.result(timeout=60)


async def test_plain_and_async_functions_run_in_one_child_that_is_used_again(backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        process = queue.options(executor="process")
        async with Worker(queue):
            pids = [await (await process.enqueue(chores.pid)).result(timeout=60) for _ in range(3)]
            pids.append(await (await process.enqueue(chores.async_pid)).result(timeout=60))
            here = await (await queue.enqueue(chores.pid)).result(timeout=60)
    assert len(set(pids)) == 1
    assert here == os.getpid() not in pids


async def test_as_many_children_as_slots_run_at_the_same_time(queue: TaskQueue, tmp_path: Path) -> None:
    handles = [await queue.options(executor="process").enqueue(chores.report, str(tmp_path)) for _ in range(4)]

    async def started() -> bool:
        tasks = [await queue.get_task(handle) for handle in handles]
        return sum(task is not None and task.progress is not None for task in tasks) == 3

    async with Worker(queue, max_concurrency=3):
        await until(started)
        (tmp_path / "go").touch()
        for handle in handles:
            await handle.result(timeout=60)


async def test_a_child_is_replaced_after_so_many_tasks(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sitq._processes._MOST_TASKS", 2)
    handles = await queue.options(executor="process").enqueue_many(chores.pid, [()] * 5)
    async with Worker(queue, max_concurrency=1):
        pids = [await handle.result(timeout=60) for handle in handles]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


async def test_a_child_that_is_not_used_goes_away(queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sitq._processes._IDLE", 0.01)
    handle = await queue.options(executor="process").enqueue(chores.pid)
    async with Worker(queue):
        pid = await handle.result(timeout=60)
        await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_child_that_has_grown_too_large_is_replaced(queue: TaskQueue) -> None:
    most = rss() // 2**20 + 100  # the worker is in this process, which the tests before may have made large
    process = queue.options(executor="process")
    runs = [await process.enqueue(chores.swell, size) for size in (1, most, 1)]
    worker = Worker(queue, max_concurrency=1)
    running = asyncio.create_task(worker.start(max_rss=most * 2**20))
    first, second, third = [await handle.result(timeout=60) for handle in runs]
    await worker.stop()
    await running
    assert first == second != third


async def test_plain_functions_have_the_main_thread_and_may_run_a_loop(queue: TaskQueue) -> None:
    assert (await run(queue, chores.thread_name)).endswith("True")
    assert await run(queue, chores.run_a_loop) == "inner"


async def test_prints_go_where_the_workers_do(queue: TaskQueue, capfd: pytest.CaptureFixture[str]) -> None:
    await run(queue, chores.say, "hello")
    assert capfd.readouterr().out == "hello\n"


async def test_a_task_knows_itself(queue: TaskQueue) -> None:
    handle = await queue.options(executor="process", queue="mail").enqueue(chores.about_me)
    async with Worker(queue):
        about = await handle.result(timeout=60)
    assert about[:2] == (handle, 1)
    assert about[2] > 0
    assert about[3:] == ("chores:about_me", "mail", False)


async def test_progress_is_seen_while_it_runs_and_after(queue: TaskQueue, tmp_path: Path) -> None:
    handle = await queue.options(executor="process").enqueue(chores.report, str(tmp_path))

    async def is_one() -> bool:
        task = await queue.get_task(handle)
        return task is not None and task.progress == {"done": 1}

    async with Worker(queue):
        await until(is_one)
        (tmp_path / "go").touch()
        await handle.result(timeout=60)
    task = await queue.get_task(handle)
    assert task is not None
    assert task.progress == {"done": 3}


@pytest.mark.parametrize("backend", ["sqlite", "postgres", "valkey"], indirect=True)
async def test_a_task_enqueues_others(backend: Backend) -> None:
    async with TaskQueue(backend) as queue:
        task_id = await run(queue, chores.parent)
        assert await queue.get_task(task_id) is not None


@pytest.mark.parametrize("url", ["memory://", "sqlite:///:memory:"])
async def test_a_store_of_this_process_says_that_it_cannot_be_reached(url: str) -> None:
    async with TaskQueue(url) as queue:
        with pytest.raises(TaskFailedError, match=r"BackendError: .*(cannot be reached|stays in the process)"):
            await run(queue, chores.parent)


async def test_the_lifespan_is_opened_once_in_each_child(tmp_path: Path) -> None:
    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db"), lifespan=chores.lifespan) as queue:
        process = queue.options(executor="process")
        async with Worker(queue, max_concurrency=1):
            states = [await (await process.enqueue(chores.state)).result(timeout=60) for _ in range(2)]
    assert states[0] == states[1]
    assert states[0]["opened"] == 1
    assert states[0]["pid"] != os.getpid()


async def test_a_child_that_cannot_start_costs_nobody_an_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SITQ_TEST_PID", str(os.getpid()))
    monkeypatch.setenv("SITQ_TEST_FILE", str(tmp_path / "ready"))
    monkeypatch.setattr("sitq._execute._NO_CHILD_DELAY", 0.01)
    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db"), lifespan=chores.broken_in_children) as queue:
        handle = await queue.options(executor="process").enqueue(chores.about_me)
        async with Worker(queue):
            await until(lambda: "the pool is not there" in caplog.text)
            (tmp_path / "ready").touch()
            assert (await handle.result(timeout=60))[1] == 1
    assert "could not start" in caplog.text


async def test_middleware_and_context_variables_cross(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "tasks.db")
    async with TaskQueue(backend, middleware=[chores.shout], contextvars=[chores.tenant]) as queue:
        token = chores.tenant.set("acme")
        shouted = await run(queue, chores.who)
        chores.tenant.reset(token)
        again = await run(queue, chores.who)
    pid, *rest = shouted.split()
    assert rest == ["chores:who", "acme"]
    assert int(pid) != os.getpid()
    assert again.endswith("None")


def _closure() -> Callable[..., Awaitable[Any]]:
    lock = threading.Lock()

    async def layer(current: Any, call_next: Callable[[], Awaitable[Any]]) -> Any:
        with lock:
            return await call_next()

    return layer


class _WithLock(JsonSerializer):
    def __init__(self) -> None:
        self.lock = threading.Lock()


_LOCK = threading.Lock()


@asynccontextmanager
async def _lifespan(queue: TaskQueue, lock: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("middleware", {"middleware": [_closure()]}),
        ("serializer", {"serializer": _WithLock()}),
        ("lifespan", {"lifespan": partial(_lifespan, lock=_LOCK)}),
        ("contextvars", {"contextvars": [ContextVar("local")]}),
    ],
)
async def test_what_cannot_cross_is_named_by_the_first_task(
    part: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db"), **settings) as queue:
        with pytest.raises(TaskFailedError, match=f"the {part} cannot cross into a child process .* top level"):
            await run(queue, chores.registered, 1, retry=3)


async def test_json_and_signed_json_find_their_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITQ_TEST_PID", str(os.getpid()))
    for number, serializer in enumerate([JsonSerializer(), SignedSerializer(JsonSerializer(), {"k": b"x" * 32})]):
        async with TaskQueue(SQLiteBackend(tmp_path / f"{number}.db"), serializer) as queue:
            assert await run(queue, chores.registered, 21) == 42


async def test_retry_rules_are_those_of_the_function(queue: TaskQueue) -> None:
    handle = await queue.options(executor="process").enqueue(chores.fussy)
    async with Worker(queue):
        with pytest.raises(TaskFailedError, match="not worth repeating") as caught:
            await handle.result(timeout=60)
    result = caught.value.result
    assert result.attempts == 1
    assert result.traceback is not None
    assert 'raise FlakyError("not worth repeating")' in result.traceback
    assert "sitq" not in result.traceback


async def test_what_a_task_asks_for_reaches_the_store(
    queue: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITQ_TEST_FILE", str(tmp_path / "deferred"))
    with pytest.raises(TaskFailedError, match=r"\(discarded\): no use"):
        await run(queue, chores.discard)
    assert await run(queue, chores.defer_once) == 1
    assert (tmp_path / "deferred").exists()


SCRIPT = """
import asyncio, os, sys
from contextlib import asynccontextmanager
from sitq import TaskQueue, Worker, current_task

print("imported as", __name__, flush=True)
SHIFT = 1

class Point:
    def __init__(self, x): self.x = x + SHIFT

class Layer:
    async def __call__(self, current, call_next):
        return await call_next()

@asynccontextmanager
async def lifespan(queue):
    yield Point(1)

def where(point):
    return __name__, os.getpid(), Point(point.x).x, current_task().state.x

async def main():
    queue = TaskQueue("sqlite:///tasks.db", lifespan=lifespan, middleware=[Layer()])
    async with queue:
        handle = await queue.options(executor="process").enqueue(where, Point(0))
        async with Worker(queue):
            name, pid, x, state = await handle.result(timeout=60)
            print(name, pid != os.getpid(), x, state)
"""


def script(folder: Path, start: str) -> subprocess.CompletedProcess[str]:
    """Run a script elsewhere, as a user does; sitq itself is found by `PYTHONPATH`."""
    (folder / "bin").mkdir()
    (folder / "bin" / "report.py").write_text(SCRIPT + start, encoding="utf-8")
    command = [sys.executable, "-W", "error", "bin/report.py"]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_functions_of_the_started_script_resolve_and_it_is_not_started_again(tmp_path: Path) -> None:
    ran = script(tmp_path, 'if __name__ == "__main__":\n    asyncio.run(main())\n')
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["imported as __main__", "imported as report", "report True 2 2"]


async def test_a_pool_of_its_own_starts_and_ends_in_order(queue: TaskQueue) -> None:
    pool = ProcessPool(queue, queue.serializer)
    await pool.close()  # nothing was started
