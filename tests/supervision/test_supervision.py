"""`sitq worker --processes`: dead workers are replaced, their tasks start again at once, stops are in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleet import APP, Fleet
from sitq import SQLiteBackend, TaskFailedError, TaskQueue, ValidationError, Worker
from sitq._supervisor import supervise
from sitq.backends.base import Backend
from waiting import DEADLINE, until


@pytest.fixture
async def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TaskQueue]:
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    async with TaskQueue(SQLiteBackend(tmp_path / "tasks.db")) as queue:
        yield queue
    sys.modules.pop("app", None)


def app() -> Any:
    import app  # type: ignore[import-not-found]  # written by the test

    return app


async def started(fleet: Fleet, number: int) -> None:
    await until(lambda: len(fleet.log()) >= number, f"the start of {number} tasks")


async def test_what_a_killed_worker_held_starts_again_while_its_lease_would_still_run(
    queue: TaskQueue, tmp_path: Path
) -> None:
    handles = await queue.enqueue_many(app().hold, [(f"t{n}",) for n in range(6)])
    with Fleet(tmp_path, "--processes", "2", "-c", "3", "--lease", "3600") as fleet:
        await started(fleet, 6)
        victim = fleet.log()[0][1]
        held = {name for name, pid in fleet.log() if pid == victim}
        fleet.kill(victim)
        await started(fleet, 6 + len(held))
        (tmp_path / "go").touch()
        for handle in handles:
            await handle.result(timeout=DEADLINE)
        await until(lambda: len(fleet.workers()) == 2)
        fleet.signal()
        assert fleet.end().exit_code == 0
    assert sorted(name for name, _ in fleet.log()) == sorted([f"t{n}" for n in range(6)] + list(held))
    tasks = [await queue.get_task(handle) for handle in handles]
    assert sum(task.crashes for task in tasks if task) == len(held)
    assert f"{len(held)} tasks start again" in "\n".join(fleet.lines)


async def test_two_bad_tasks_among_good_ones_are_the_only_ones_quarantined(queue: TaskQueue, tmp_path: Path) -> None:
    good = await queue.enqueue_many(app().pid, [()] * 30)
    bad = [await queue.enqueue(harm) for harm in (app().segfault, app().leave)]
    good += await queue.enqueue_many(app().pid, [()] * 30)
    with Fleet(tmp_path, "--processes", "2", "-c", "4") as fleet:
        for handle in bad:
            with pytest.raises(TaskFailedError) as caught:
                await handle.result(timeout=DEADLINE)
            assert caught.value.result.reason == "quarantined"
        for handle in good:
            await handle.result(timeout=DEADLINE)
        fleet.signal()
        assert fleet.end().exit_code == 0
    tasks = [await queue.get_task(handle) for handle in bad]
    assert [task.solo_crashes for task in tasks if task] == [3, 3]
    neighbours = [await queue.get_task(handle) for handle in good]
    assert {task.solo_crashes for task in neighbours if task} == {0}


async def test_a_stop_lets_tasks_finish_and_a_second_one_gives_them_back(queue: TaskQueue, tmp_path: Path) -> None:
    handle = await queue.enqueue(app().hold, "first")
    with Fleet(tmp_path, "--processes", "2", "--grace", "3600") as fleet:
        await started(fleet, 1)
        fleet.signal()
        (tmp_path / "go").touch()
        await handle.result(timeout=DEADLINE)
        assert fleet.end().exit_code == 0
    (tmp_path / "go").unlink()
    second = await queue.enqueue(app().hold, "second")
    with Fleet(tmp_path, "--processes", "2", "--grace", "3600") as fleet:
        await started(fleet, 2)
        fleet.signal(signal.SIGINT)
        fleet.signal(signal.SIGTERM)
        assert fleet.end().exit_code == 0
    task = await queue.get_task(second)
    assert task is not None
    assert (task.status, task.attempt, task.crashes) == ("queued", 0, 0)


async def test_workers_stop_in_good_order_when_their_supervisor_is_killed(queue: TaskQueue, tmp_path: Path) -> None:
    handle = await queue.enqueue(app().hold, "t")
    with Fleet(tmp_path, "--processes", "2") as fleet:
        await started(fleet, 1)
        workers = fleet.workers()
        assert len(workers) == 2
        fleet.signal(signal.SIGKILL)
        (tmp_path / "go").touch()
        await handle.result(timeout=DEADLINE)
        await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the workers")
    task = await queue.get_task(handle)
    assert task is not None
    assert (task.status, task.attempt) == ("completed", 1)


async def test_a_worker_retires_after_so_many_tasks_and_its_long_one_goes_on(queue: TaskQueue, tmp_path: Path) -> None:
    long = await queue.enqueue(app().hold, "long")
    with Fleet(tmp_path, "--max-tasks", "5", "--grace", "0") as fleet:
        await started(fleet, 1)
        first = fleet.log()[0][1]
        pids = set()
        for _ in range(4):
            handles = await queue.enqueue_many(app().pid, [()] * 5)
            pids |= {await handle.result(timeout=DEADLINE) for handle in handles}
        assert pids - {first}
        (tmp_path / "go").touch()
        assert await long.result(timeout=DEADLINE) == first
        fleet.signal()
        assert fleet.end().exit_code == 0
    task = await queue.get_task(long)
    assert task is not None
    assert (task.attempt, task.crashes) == (1, 0)
    assert "retires: it has run 5 tasks" in "\n".join(fleet.lines)


async def test_a_worker_that_has_grown_too_large_is_replaced(queue: TaskQueue, tmp_path: Path) -> None:
    with Fleet(tmp_path, "--max-rss", "200") as fleet:
        first: int = await (await queue.enqueue(app().swell, 300)).result(timeout=DEADLINE)

        async def replaced() -> bool:
            now: int = await (await queue.enqueue(app().pid)).result(timeout=DEADLINE)
            return now != first

        await until(replaced)
        fleet.signal()
        assert fleet.end().exit_code == 0
    assert "of memory are too much" in "\n".join(fleet.lines)


async def test_a_stop_of_a_retiring_worker_has_its_grace(
    queue: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = await queue.enqueue(app().hold, "long")
    worker = Worker(queue, grace=0.01)
    running = asyncio.create_task(worker.start(max_tasks=1))
    await (await queue.enqueue(app().pid)).result(timeout=DEADLINE)
    await worker.stop()
    await running
    task = await queue.get_task(long)
    assert task is not None
    assert task.status == "queued"


def test_an_application_that_cannot_start_is_given_up(tmp_path: Path) -> None:
    with Fleet(tmp_path, "--processes", "2", app="import nonsense") as fleet:
        answer = fleet.end()
    assert answer.exit_code == 2
    assert answer.err.count("nonsense") >= 1


def run_supervisor(command: list[str], backend: Any = None) -> int:
    def none() -> Backend:
        raise AssertionError("no store is asked for")

    return supervise(command, 1, backend or none, stop_within=DEADLINE)


def test_processes_that_end_before_they_start_are_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("sitq._supervisor._FIRST_PAUSE", 0.001)
    program = f"open({str(tmp_path / 'log')!r}, 'a').write('x'); raise SystemExit(7)"
    assert run_supervisor([sys.executable, "-c", program]) == 7
    assert (tmp_path / "log").read_text(encoding="ascii") == "x" * 6
    assert "giving up" in caplog.text
    assert "exit code 7" in caplog.text
    assert "cannot free the tasks" in caplog.text


def test_a_wrong_command_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    assert run_supervisor([sys.executable, "-c", "raise SystemExit(2)"]) == 2
    assert caplog.text.count("ended with exit code 2") == 1


def test_one_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tmp_path / "ready"
    program = (
        "import os, signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"open({str(ready)!r}, 'w').close(); os.kill({os.getpid()}, signal.SIGTERM); threading.Event().wait()"
    )

    class Nothing(SQLiteBackend):
        async def abandon_worker(self, worker_id: str) -> int:
            abandoned.append(worker_id)
            return 0

    abandoned: list[str] = []
    code = supervise([sys.executable, "-c", program], 1, lambda: Nothing(tmp_path / "tasks.db"), stop_within=0.1)
    assert code == 0
    assert len(abandoned) == 1


def test_limits_are_numbers() -> None:
    with pytest.raises(ValidationError, match="max_tasks"):
        asyncio.run(Worker(SQLiteBackend(":memory:")).start(max_tasks=0))
