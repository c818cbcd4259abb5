"""`SyncTaskQueue`: the same API for plain code, in threads, forks and at the interpreter's exit."""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import sitq
from sitq import (
    BackendError,
    Event,
    PartialEnqueueError,
    ResultTimeoutError,
    SitqError,
    SQLiteBackend,
    SyncTaskHandle,
    SyncTaskQueue,
    TaskFailedError,
    TaskQueue,
    UnsupportedError,
    ValidationError,
    Worker,
)
from sitq.core import Accepted

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


async def add(a: int, b: int = 2) -> int:
    return a + b


def fail() -> None:
    raise KeyError("no")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def queue(path: Path) -> Iterator[SyncTaskQueue]:
    with SyncTaskQueue(SQLiteBackend(path), contextvars=[tenant]) as queue:
        yield queue


def work(path: Path) -> None:
    async def until_empty() -> None:
        async with TaskQueue(SQLiteBackend(path)) as queue:
            await Worker(queue).run_until_empty()

    asyncio.run(until_empty())


def test_enqueue_and_wait(queue: SyncTaskQueue, path: Path) -> None:
    handle = queue.enqueue(add, 1)
    assert isinstance(handle, SyncTaskHandle)
    assert handle.created
    assert type(pickle.loads(pickle.dumps(handle))) is str
    assert repr(handle) == f"SyncTaskHandle({str(handle)!r})"
    assert queue.get_result(handle) is None
    with pytest.raises(ResultTimeoutError):
        handle.result(timeout=0)
    work(path)
    assert handle.result() == 3
    result = queue.get_result(handle, timeout=60)
    assert result is not None
    assert result.value == queue.deserialize_result(result) == 3
    task = queue.get_task(handle)
    assert task is not None
    assert task.status == "completed"
    assert queue.cancel(handle) == "finished"


def test_options_and_many(queue: SyncTaskQueue, path: Path) -> None:
    mail = queue.options(queue="mail", unique="one")
    first, second = mail.enqueue(add, 1), mail.enqueue(add, 1)
    assert (first.created, second.created, first) == (True, False, second)
    many = queue.enqueue_many(add, [(1, 1), {"a": 2}])
    many += queue.options(priority=3).enqueue_many(add, [(3, 3)])
    later = queue.enqueue(add, 1, eta=datetime.now(UTC) + timedelta(days=1))
    failing = queue.enqueue(fail)
    work(path)
    assert [handle.result(timeout=60) for handle in many] == [2, 4, 6]
    with pytest.raises(TaskFailedError, match="KeyError"):
        failing.result(timeout=60)
    assert queue.cancel(later) == "cancelled"


def test_what_is_wrong_is_raised_where_it_was_called(queue: SyncTaskQueue) -> None:
    with pytest.raises(ValidationError):
        queue.enqueue(add, 1, 2, 3)  # type: ignore[call-overload]
    with pytest.raises(ValidationError):
        queue.options(priority=10)


def test_a_bulk_that_stops_in_the_middle_has_handles_of_its_own(
    queue: SyncTaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sitq.queue._CHUNK_TASKS", 1)
    with pytest.raises(PartialEnqueueError) as caught:
        queue.enqueue_many(add, [(1,), (2,), (1, 2, 3)])
    (handle,) = caught.value.accepted
    assert isinstance(handle, SyncTaskHandle)
    assert queue.get_task(handle) is not None


def test_many_threads_share_it(queue: SyncTaskQueue, path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda n: queue.enqueue(add, n), range(200)))
    assert len(set(handles)) == 200
    work(path)
    assert [handle.result(timeout=60) for handle in handles] == [n + 2 for n in range(200)]


def test_first_use_by_many_threads_at_once_opens_one_thread(path: Path) -> None:
    queue, barrier = SyncTaskQueue(SQLiteBackend(path)), threading.Barrier(8)

    def use(_: int) -> str:
        barrier.wait()
        return queue.enqueue(add, 1)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(use, range(8)))) == 8
    assert [thread.name for thread in threading.enumerate()].count("sitq-portal") == 1
    queue.close()
    assert "sitq-portal" not in [thread.name for thread in threading.enumerate()]


async def test_inside_a_running_loop_it_blocks_but_works(path: Path) -> None:
    queue = SyncTaskQueue(SQLiteBackend(path))
    handle = queue.enqueue(add, 1)
    async with TaskQueue(SQLiteBackend(path)) as other, Worker(other):
        assert await other.get_result(handle, timeout=60) is not None
    assert handle.result(timeout=60) == 3
    queue.close()


def test_in_its_own_thread_it_refuses_rather_than_wait_for_itself(queue: SyncTaskQueue) -> None:
    errors: list[Exception] = []

    def callback(event: Event) -> None:
        calls: list[Callable[[], object]] = [lambda: queue.get_task(event.task_id or ""), queue.close]
        for call in calls:
            try:
                call()
            except SitqError as error:
                errors.append(error)

    queue.on("enqueued", callback)
    queue.enqueue(add, 1)
    assert ["own thread" in str(error) for error in errors] == [True, True]


def test_context_variables_are_those_of_the_caller(queue: SyncTaskQueue) -> None:
    token = tenant.set("acme")
    task = queue.get_task(queue.enqueue(add, 1))
    tenant.reset(token)
    assert task is not None
    assert task.options is not None
    assert task.options.context == {"contextvars": {"tenant": "acme"}}


def test_a_task_joins_the_callers_own_transaction(queue: SyncTaskQueue, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)  # may be used in this thread only
    for end, stored in (("ROLLBACK", False), ("COMMIT", True)):
        connection.execute("BEGIN IMMEDIATE")
        handle = queue.options(connection=connection).enqueue(add, 1)
        handles = queue.options(connection=connection).enqueue_many(add, [(1,)])
        connection.execute(end)
        assert [queue.get_task(one) is not None for one in (handle, *handles)] == [stored] * 2
    connection.close()


def test_a_store_that_must_wait_cannot_join_one(path: Path) -> None:
    class Waiting(SQLiteBackend):
        async def enqueue_in(self, connection: object, tasks: object) -> list[Accepted]:
            await asyncio.sleep(0)
            return []

    with SyncTaskQueue(Waiting(path)) as queue, pytest.raises(UnsupportedError, match="use TaskQueue"):
        queue.options(connection=object()).enqueue(add, 1)


def test_it_opens_again_after_it_was_closed(queue: SyncTaskQueue) -> None:
    handle = queue.enqueue(add, 1)
    queue.close()
    queue.close()
    assert queue.get_task(handle) is not None


def test_threads_that_go_on_while_it_is_closed_have_it_open_again(queue: SyncTaskQueue) -> None:
    def produce(number: int) -> list[str]:
        ids: list[str] = []
        while len(ids) < 20:
            try:
                ids.append(queue.enqueue(add, number))
            except BackendError:  # called off by the close: not acknowledged
                continue
        return ids

    with ThreadPoolExecutor(4) as pool:
        producing = [pool.submit(produce, number) for number in range(4)]
        for _ in range(5):
            queue.close()
        ids = [task_id for future in producing for task_id in future.result()]
    assert len(set(ids)) == 80
    assert all(queue.get_task(task_id) is not None for task_id in ids)


def test_who_waits_when_it_is_closed_hears_of_it(queue: SyncTaskQueue) -> None:
    handle = queue.enqueue(add, 1)
    with ThreadPoolExecutor(1) as pool:
        asked = threading.Event()

        def wait() -> None:
            asked.set()
            handle.result()

        waiting = pool.submit(wait)
        asked.wait()
        while not waiting.done():
            queue.close()
        with pytest.raises(BackendError, match="closed"):
            waiting.result()


def test_a_worker_takes_the_queue_behind_it(queue: SyncTaskQueue) -> None:
    handle = queue.enqueue(add, 1)
    queue.close()
    asyncio.run(Worker(queue.queue).run_until_empty())
    assert handle.result(timeout=60) == 3


def test_two_event_loops_one_after_the_other_share_a_queue(path: Path) -> None:
    queue = TaskQueue(SQLiteBackend(path))

    async def enqueue(n: int) -> str:
        return await queue.enqueue(add, n)

    ids = [asyncio.run(enqueue(n)) for n in range(2)]

    async def run() -> list[object]:
        await Worker(queue).run_until_empty()
        results = [await queue.get_result(task_id) for task_id in ids]
        await queue.close()
        return [result.value for result in results if result]

    assert asyncio.run(run()) == [2, 3]


# --- processes --------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, threading
from sitq import SyncTaskQueue

def add(a, b): return a + b

queue = SyncTaskQueue("sqlite:///tasks.db")
"""


def run(folder: Path, program: str) -> list[str]:
    """Run a program to its end, warnings being errors, and return the ids it printed."""
    (folder / "program.py").write_text(PROGRAM + program, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(Path(sitq.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "program.py"]
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.split()


def assert_stored(path: Path, ids: list[str], number: int) -> None:
    assert len(set(ids)) == len(ids) == number
    with SyncTaskQueue(SQLiteBackend(path)) as queue:
        assert all(queue.get_task(task_id) is not None for task_id in ids)


def test_a_program_that_just_ends_loses_nothing_and_does_not_hang(tmp_path: Path, path: Path) -> None:
    ids = run(tmp_path, "for n in range(20): print(queue.enqueue(add, n, 1))\n")
    assert_stored(path, ids, 20)


def test_threads_that_enqueue_while_the_program_ends_lose_nothing(tmp_path: Path, path: Path) -> None:
    ids = run(
        tmp_path,
        """
def many():
    for n in range(20): sys.stdout.write(queue.enqueue(add, n, 1) + " ")

queue.connect()
for _ in range(4): threading.Thread(target=many).start()
""",
    )
    assert_stored(path, ids, 80)


def test_a_queue_first_used_when_the_program_has_ended_works_or_says_why_not(tmp_path: Path, path: Path) -> None:
    ids = run(
        tmp_path,
        """
from sitq import BackendError

def late():
    threading.main_thread().join()
    try:
        print(queue.enqueue(add, 1, 1))
    except BackendError as error:  # Python 3.12 and newer start no thread any more
        assert "while the program runs" in str(error), error

threading.Thread(target=late).start()
""",
    )
    if sys.version_info < (3, 12):
        assert_stored(path, ids, 1)


def test_a_script_that_has_ended_is_not_run_again_for_its_threads(tmp_path: Path, path: Path) -> None:
    ids = run(
        tmp_path,
        """
def late():
    threading.main_thread().join()
    print(queue.enqueue(add, 1, 1))

print(queue.enqueue(add, 0, 0))
threading.Thread(target=late).start()
""",
    )
    assert_stored(path, ids, 2)


def test_a_program_that_ends_while_a_thread_waits_does_not_hang(tmp_path: Path, path: Path) -> None:
    ids = run(
        tmp_path,
        """
handle = queue.enqueue(add, 1, 1)
threading.Thread(target=lambda: handle.result(), daemon=True).start()
print(handle)
""",
    )
    assert_stored(path, ids, 1)


def test_forks_have_threads_of_their_own(tmp_path: Path, path: Path) -> None:
    ids = run(
        tmp_path,
        """
print(queue.enqueue(add, 1, 1), flush=True)
forks = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        print(queue.enqueue(add, 2, 2), flush=True)
        sys.exit(0)
    forks.append(pid)
print(queue.enqueue(add, 3, 3), flush=True)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in forks)
print(queue.enqueue(add, 4, 4), flush=True)
""",
    )
    assert_stored(path, ids, 6)


def test_a_fork_while_other_threads_are_enqueuing(tmp_path: Path, path: Path) -> None:
    ids = run(
        tmp_path,
        """
stop = threading.Event()
def busy():
    while not stop.is_set(): queue.enqueue(add, 1, 1)

for _ in range(4): threading.Thread(target=busy).start()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        print(queue.enqueue(add, 2, 2), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
""",
    )
    assert_stored(path, ids, 10)
