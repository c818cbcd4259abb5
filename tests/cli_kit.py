"""The command line in tests: called in this process, or as a real one, on a store with tasks in every phase."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from typer.testing import CliRunner

import sitq
from sitq import SQLiteBackend
from sitq.cli._app import app
from sitq.core import Accepted, NewTask, Outcome, Result, Task, TaskOptions, WorkerInfo, utcnow
from sitq.serialization import CloudpickleSerializer

__all__ = ["WIDTHS", "Answer", "Cli", "SitqProcess", "fill", "write_app"]

WIDTHS = (80, 140)
DEADLINE = 60.0
SOURCES = Path(sitq.__file__).parents[1]


class Answer:
    """What a command printed, and its exit code."""

    def __init__(self, exit_code: int, out: str, err: str) -> None:
        self.exit_code = exit_code
        self.out = out
        self.err = err

    @property
    def data(self) -> Any:
        """The JSON that was printed."""
        return json.loads(self.out)


class Cli:
    """`cli("status", "--json")` in this process, on one store."""

    def __init__(self, backend: str | None) -> None:
        self.backend = backend

    def __call__(self, *arguments: str, columns: int = 80, answer: str = "", code: int | None = 0) -> Answer:
        """Run a command; unless `code` is None, its exit code must be that."""
        env = {"COLUMNS": str(columns), "SITQ_BACKEND": self.backend, "NO_COLOR": "1"}
        result = CliRunner().invoke(app, list(arguments), input=answer, env=env, catch_exceptions=False)
        assert code is None or result.exit_code == code, (result.exit_code, result.output)
        too_long = [line for line in result.stdout.splitlines() if len(line) > columns and "after" not in line]
        assert not too_long or "--json" in arguments or "Traceback" in result.stdout, too_long
        return Answer(result.exit_code, result.stdout, result.stderr)


# --- a store with something of everything -----------------------------------------------------------------------------


_BOX = WorkerInfo(id="box-7-cafe", host="box", pid=7, queues=("again", "default", "work"))


async def fill(path: Path) -> dict[str, str]:
    """Make a store at `path` with tasks in every phase but expired; return their ids by what they are."""
    async with SQLiteBackend(path) as store:
        ids = {name: await _add(store, name, TaskOptions()) for name in ("completed", "failed", "cancelled", "crashed")}
        await store.cancel_tasks([ids["cancelled"]])
        (done,) = await store.reserve(_BOX, 1)
        await store.settle([Outcome.completed(done.id, done.fence, _success(done.id))])
        failed, crashed = await store.reserve(_BOX, 2)
        await store.settle([
            Outcome.failed(failed.id, failed.fence, _failure(failed.id, "error")),
            Outcome.failed(crashed.id, crashed.fence, _failure(crashed.id, "quarantined")),
        ])  # fmt: skip
        ids["retrying"] = await _add(store, "retrying", TaskOptions(queue="again"))
        (again,) = await store.reserve(_BOX, 1)
        await store.settle([Outcome.deferred(again.id, again.fence, 30 * 86400.0, "retry after KeyError: 'x'")])
        ids["running"] = await _add(store, "running", TaskOptions(queue="work", timeout=90.0))
        await store.reserve(_BOX, 1)
        ids["stalled"] = await _add(store, "stalled", TaskOptions())
        await store.reserve(WorkerInfo(id="lost-1"), 1)
        await store.abandon_worker("lost-1")
        ids["scheduled"] = await _add(store, "scheduled", TaskOptions(queue="mail"), days=30)
        ids["first"] = await _add(store, "first", TaskOptions(queue="mail", unique="daily"))
        ids["ready"] = await _add(store, "ready", TaskOptions(queue="mail"))
        ids["urgent"] = await _add(store, "urgent", TaskOptions(queue="mail", priority=9))
        return ids


async def _add(store: SQLiteBackend, name: str, options: TaskOptions, days: int | None = None) -> str:
    from sitq._ids import new_id

    task_id, eta = new_id(), None if days is None else utcnow() + timedelta(days=days, minutes=1)
    payload = CloudpickleSerializer().encode_call(
        task_id, f"json:{name}", json.dumps, (["secret", name],), {"indent": 2}
    )
    task = Task(id=task_id, name=f"shop:{name}", payload=payload, options=options, eta=eta)
    assert await store.enqueue_tasks([NewTask(task=task)]) == [Accepted(id=task_id)]
    return task_id


def _success(task_id: str) -> Result:
    payload = CloudpickleSerializer().encode_result(task_id, "the value")
    return Result(task_id=task_id, payload=payload, started_at=utcnow(), finished_at=utcnow())


def _failure(task_id: str, reason: str) -> Result:
    trace = 'Traceback (most recent call last):\n  File "shop.py", line 3, in failed\nValueError: no\n'
    return Result(
        task_id=task_id, status="failed", error="ValueError: no", traceback=trace, reason=reason, attempts=1,
        started_at=utcnow(), finished_at=utcnow(),
    )  # fmt: skip


# --- real processes ---------------------------------------------------------------------------------------------------

APP = """
import asyncio
from pathlib import Path
from sitq import TaskQueue, task

queue = TaskQueue("sqlite:///tasks.db")
number = 7
at_once = 0

def make_queue():
    return queue

def add(a, b):
    return a + b

def boom():
    raise ValueError("no")

async def until(name):
    while not Path(name).exists():
        await asyncio.sleep(0.01)

async def crowd():
    global at_once
    at_once += 1
    await asyncio.sleep(0.01)
    seen, at_once = at_once, at_once - 1
    return seen
"""


def write_app(folder: Path, name: str = "app") -> Path:
    """Write a module with a queue and tasks; its store is `tasks.db` in the same folder."""
    path = folder / f"{name}.py"
    path.write_text(APP)
    return path


class SitqProcess:
    """A `sitq` process, and what it wrote to stderr so far."""

    def __init__(self, folder: Path, *arguments: str, python: Sequence[str] = ("-m", "sitq")) -> None:
        env = {**os.environ, "PYTHONPATH": f"{SOURCES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        env.pop("SITQ_BACKEND", None)
        self._process = subprocess.Popen(
            [sys.executable, *python, *arguments], cwd=folder, env=env, text=True, encoding="utf-8",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._news.put(line.rstrip("\n"))
        self._news.put(None)

    def wait_for(self, text: str) -> str:
        """Return the next line with `text` in it."""
        while True:
            line = self._news.get(timeout=DEADLINE)
            assert line is not None, f"{text!r} did not come:\n" + "\n".join(self.lines)
            self.lines.append(line)
            if text in line:
                return line

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def ended(self, seconds: float) -> bool:
        """Say whether it ends within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> Answer:
        """Wait for the end; return all that was written."""
        code = self._process.wait(DEADLINE)
        assert self._process.stdout is not None
        out = self._process.stdout.read()
        self._reader.join(DEADLINE)
        while (line := self._news.get(timeout=DEADLINE)) is not None:
            self.lines.append(line)
        self._news.put(None)
        return Answer(code, out, "\n".join(self.lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
