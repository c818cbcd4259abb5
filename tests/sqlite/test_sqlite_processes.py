"""Several processes on one file: no lock reaches the user, no acknowledged task is lost, a fork starts afresh."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from pathlib import Path

import pytest

from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import PATIENCE, WORKER, completed, new, run, start

HAMMER = """
import asyncio, sys
from sitq.backends.sqlite import SQLiteBackend
from sitq.core import WorkerInfo
from sqlite.store_kit import completed, new

async def main(path, me, count):
    worker, done = WorkerInfo(id=me), []
    async with SQLiteBackend(path) as backend:
        async def produce(lane):
            for number in range(count // 10):
                await backend.enqueue_tasks([new(f"{me}-{lane}-{number}")])
        async def consume():
            while True:
                is_last = producing.done()
                tasks = await backend.reserve(worker, 20)
                assert all(await backend.settle([completed(task) for task in tasks]))
                done.extend(task.id for task in tasks)
                if not tasks and is_last:
                    return
                if not tasks:
                    await backend.wait_for_work(worker, 0.2)
        producing = asyncio.gather(*(produce(lane) for lane in range(10)))
        await asyncio.gather(producing, consume())
    print(*done)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_processes_that_enqueue_and_work_at_once_share_the_tasks(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    async with SQLiteBackend(path) as backend:
        outputs = await asyncio.gather(*(asyncio.to_thread(run, HAMMER, path, f"p{n}", 300) for n in range(4)))
        taken = [task_id for output in outputs for task_id in output.split()]
        assert len(taken) == len(set(taken))  # no task went to two
        left = await backend.reserve(WORKER, 2000)
        assert len(taken) + len(left) == 4 * 300
        assert {task.attempt for task in left} <= {1}


PRODUCER = """
import asyncio, sys
from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import new

async def main(path):
    async with SQLiteBackend(path) as backend:
        async def produce(lane):
            for number in range(1_000_000):
                [accepted] = await backend.enqueue_tasks([new(f"{lane}-{number}")])
                print(accepted.id, flush=True)
        await asyncio.gather(*(produce(lane) for lane in range(20)))

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("lines", [1, 40, 333])
def test_a_killed_producer_loses_no_id_it_was_given(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "tasks.db"
    with start(PRODUCER, path) as producer:
        assert producer.stdout is not None
        told = [producer.stdout.readline() for _ in range(lines)]
        producer.send_signal(signal.SIGKILL)
        told += producer.stdout.readlines()
        producer.wait(PATIENCE)
    acknowledged = {line.strip() for line in told if line.endswith("\n")}
    connection = sqlite3.connect(path)
    stored = {row[0] for row in connection.execute("SELECT id FROM sitq_tasks")}
    connection.close()
    assert len(acknowledged) >= lines
    assert acknowledged <= stored


FORK = """
import asyncio, os, sys
from sitq.backends.sqlite import SQLiteBackend
from sitq.exceptions import BackendError
from sqlite.store_kit import WORKER, new

backend = SQLiteBackend(sys.argv[1])
asyncio.run(backend.enqueue_tasks([new("before")]))

async def child():
    await backend.enqueue_tasks([new("child")])
    await backend.wait_for_work(WORKER, 5)
    print(sorted(task.id for task in await backend.list_tasks()), flush=True)
    await backend.close()

pid = os.fork()
if pid == 0:
    try:
        asyncio.run(child())
    except BackendError as error:
        print(error, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0

async def parent():
    await backend.enqueue_tasks([new("after")])
    print(sorted(task.id for task in await backend.list_tasks()))
    await backend.close()

asyncio.run(parent())
"""


def test_a_fork_of_a_producer_starts_afresh_and_leaves_its_parent_in_peace(tmp_path: Path) -> None:
    said = run(FORK, tmp_path / "tasks.db").splitlines()
    assert said == ["['before', 'child']", "['after', 'before', 'child']"]


FORK_OUTLIVES = """
import asyncio, os, sys
from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import new

backend = SQLiteBackend(sys.argv[1])
asyncio.run(backend.enqueue_tasks([new("before")]))
closed, tell = os.pipe()
enqueued, answer = os.pipe()
pid = os.fork()

async def child():
    await backend.enqueue_tasks([new("child")])
    os.write(answer, b"x")
    os.read(closed, 1)
    await backend.enqueue_tasks([new("alone")])

if pid == 0:
    asyncio.run(child())
    os._exit(0)

async def parent():
    await backend.enqueue_tasks([new("parent")])
    os.read(enqueued, 1)
    await backend.close()  # SQLite removes the log here when it takes this process for the last one
    os.write(tell, b"x")

asyncio.run(parent())
assert os.waitpid(pid, 0)[1] == 0

async def look():
    async with SQLiteBackend(sys.argv[1]) as store:
        print(sorted(task.id for task in await store.list_tasks()))

asyncio.run(look())
"""


def test_a_fork_loses_nothing_when_its_parent_closes_first(tmp_path: Path) -> None:
    assert run(FORK_OUTLIVES, tmp_path / "tasks.db") == "['alone', 'before', 'child', 'parent']"


FORK_BESIDE_A_CONNECTION = """
import asyncio, os, sqlite3, sys
from sitq import BackendError
from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import new

backend = SQLiteBackend(sys.argv[1])
asyncio.run(backend.enqueue_tasks([new("before")]))
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT * FROM sitq_tasks").fetchall()
pid = os.fork()
if pid == 0:
    try:
        asyncio.run(backend.enqueue_tasks([new("child")]))
    except BackendError as error:
        print(str(error).partition(" ")[2], flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
asyncio.run(backend.enqueue_tasks([new("after")]))
"""


def test_a_fork_beside_an_open_connection_is_refused_rather_than_risked(tmp_path: Path) -> None:
    assert run(FORK_BESIDE_A_CONNECTION, tmp_path / "tasks.db").startswith("was open when this process was forked")


FORK_WHILE_BUSY = """
import asyncio, os, sys, threading
from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import new

backend = SQLiteBackend(sys.argv[1])
stop = threading.Event()
begun = {name: threading.Event() for name in "ab"}  # a fork while asyncio is set up would find its locks taken

def busy(name):
    async def produce():
        number = 0
        while not stop.is_set():
            await backend.enqueue_tasks([new(f"{name}-{number}")])
            await backend.get_task(f"{name}-{number}")
            number += 1
            begun[name].set()
    asyncio.run(produce())

threads = [threading.Thread(target=busy, args=(name,)) for name in begun]
for thread in threads:
    thread.start()
for event in begun.values():
    event.wait()
for number in range(15):
    pid = os.fork()
    if pid == 0:
        asyncio.run(backend.enqueue_tasks([new(f"fork-{number}")]))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()

async def look():
    async with SQLiteBackend(sys.argv[1]) as store:
        print(len([task for task in await store.list_tasks(limit=100_000) if task.id.startswith("fork")]))

asyncio.run(look())
"""


def test_a_fork_in_the_middle_of_writes_can_write(tmp_path: Path) -> None:
    assert run(FORK_WHILE_BUSY, tmp_path / "tasks.db") == "15"


def test_a_store_in_memory_does_not_cross_a_fork() -> None:
    said = run(FORK, ":memory:").splitlines()
    assert said == [
        "a :memory: store stays in the process that opened it: give this process a file",
        "['after', 'before']",
    ]


def test_a_process_ends_though_nobody_closed_the_store(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import new
backend = SQLiteBackend(sys.argv[1])
asyncio.run(backend.enqueue_tasks([new("a")]))
print("done")
"""
    path = tmp_path / "tasks.db"
    assert run(program, path) == "done"
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT id FROM sitq_tasks").fetchall() == [("a",)]
    connection.close()


async def test_one_backend_on_two_event_loops(tmp_path: Path) -> None:
    async with SQLiteBackend(tmp_path / "tasks.db") as backend:
        await backend.enqueue_tasks([new("a")])

        def other() -> None:
            async def work() -> None:
                clone = backend.clone()
                [task] = await clone.reserve(WORKER, 1)
                await clone.settle([completed(task)])
                await clone.close()

            asyncio.run(work())

        waiting = asyncio.create_task(backend.wait_for_result("a", PATIENCE))
        await asyncio.to_thread(other)
        assert await waiting is not None
