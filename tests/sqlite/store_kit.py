"""What the tests of the SQLite store share: tasks to put in, programs to run beside, a look behind the scenes."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sitq.backends.sqlite import SQLiteBackend
from sitq.backends.sqlite._work import Transaction
from sitq.core import NewTask, Outcome, ReservedTask, Result, Task, TaskOptions, WorkerInfo

T = TypeVar("T")

WORKER = WorkerInfo(id="worker", lease=30.0)
PATIENCE = 60.0
_numbers = itertools.count()


def new(task_id: str | None = None, payload: bytes = b"call", **options: Any) -> NewTask:
    """Return a task that is not in a store yet."""
    task_id = task_id or f"task-{next(_numbers):06}"
    return NewTask(task=Task(id=task_id, name="m:f", payload=payload, options=TaskOptions(**options)))


def completed(task: ReservedTask, value: bytes = b"value") -> Outcome:
    """Return the outcome of a task that went well."""
    return Outcome.completed(task.id, task.fence, Result(task_id=task.id, payload=value))


async def inside(backend: SQLiteBackend, work: Callable[[Transaction], T]) -> T:
    """Run `work` in a transaction of the writer."""
    await backend.connect()
    store = backend._store
    assert store is not None
    return await store.write(backend._clock, work)


async def handed_in() -> None:
    """Return when the writer has what was asked before: asked in one turn of the loop, handed in in the next."""
    for _ in range(2):
        await asyncio.sleep(0)


async def statements(backend: SQLiteBackend, action: Callable[[], Any]) -> list[str]:
    """Return the statements the writer executes during `action`."""
    seen: list[str] = []
    await inside(backend, lambda tx: tx.connection.set_trace_callback(seen.append))
    await action()
    await inside(backend, lambda tx: tx.connection.set_trace_callback(None))
    return seen


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program that may import `sqlite.store_kit`; its output is read line by line."""
    folder = str(Path(__file__).parents[1])
    path = os.pathsep.join([folder, *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


async def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line a program prints, without blocking the event loop."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await asyncio.to_thread(process.stdout.readline)).strip()


def run(program: str, *arguments: object) -> str:
    """Run a program to its end and return what it printed."""
    with start(program, *arguments) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return output.strip()
