"""Tasks that tests run in child processes; a module of its own, so that a child imports nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sitq import CurrentTask, Defer, Discard, TaskQueue, current_task, task

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


def pid() -> int:
    return os.getpid()


async def async_pid() -> int:
    return os.getpid()


def thread_name() -> str:
    return f"{threading.current_thread().name} {threading.current_thread() is threading.main_thread()}"


def run_a_loop() -> str:
    """Do what many plain functions do."""

    async def inner() -> str:
        return "inner"

    return asyncio.run(inner())


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def about_me() -> tuple[Any, ...]:
    me = current_task()
    return me.id, me.attempt, me.fence, me.name, me.queue_name, me.cancelled


async def report(folder: str) -> None:
    """Say how far it is, and wait for a file before it goes on."""
    current_task().progress({"done": 1})
    while not _exists(Path(folder, "go")):  # noqa: ASYNC110 (set by another process)
        await asyncio.sleep(0.01)
    current_task().progress({"done": 2})
    current_task().progress({"done": 3})


async def parent() -> str:
    return str(await current_task().queue.enqueue(pid))


def state() -> Any:
    return current_task().state


def who() -> str | None:
    return tenant.get()


class FlakyError(Exception):
    pass


@task(retry=3, retry_on=OSError)
def fussy() -> None:
    raise FlakyError("not worth repeating")


def discard() -> None:
    raise Discard("no use")


def defer_once() -> int:
    if current_task().attempt == 1 and not Path(os.environ["SITQ_TEST_FILE"]).exists():
        Path(os.environ["SITQ_TEST_FILE"]).touch()
        raise Defer(0.01)
    return current_task().attempt


@task
def registered(number: int) -> int:
    return number * 2 if os.getpid() != int(os.environ["SITQ_TEST_PID"]) else 0


@asynccontextmanager
async def lifespan(queue: TaskQueue) -> AsyncIterator[dict[str, int]]:
    """Count how often it is opened in this process."""
    global opened  # noqa: PLW0603
    opened += 1
    yield {"pid": os.getpid(), "opened": opened}


opened = 0


@asynccontextmanager
async def broken_in_children(queue: TaskQueue) -> AsyncIterator[None]:
    if os.getpid() != int(os.environ["SITQ_TEST_PID"]) and not _exists(Path(os.environ["SITQ_TEST_FILE"])):
        raise OSError("the pool is not there")
    yield


async def shout(current: CurrentTask, call_next: Callable[[], Awaitable[Any]]) -> Any:
    return f"{os.getpid()} {current.name} {await call_next()}"


# --- harm -------------------------------------------------------------------------------------------------------------


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def leave_a_fork_behind(file: str) -> None:
    """Die while a fork, which has a copy of everything that was open, lives on."""
    fork = os.fork()
    if fork == 0:
        threading.Event().wait()
    Path(file).write_text(str(fork), encoding="ascii")
    os._exit(4)


def spin(file: str) -> None:
    _note_pid(file)
    while True:
        pass


def hold_the_gil(file: str) -> None:
    """Be stuck in C, where no other thread of this process can run."""
    _note_pid(file)
    ctypes.PyDLL(None).sleep(1_000)


async def nap(file: str) -> None:
    try:
        await asyncio.sleep(1_000)
    finally:
        _note_pid(file)


def swell(megabytes: int) -> int:
    kept.append(bytearray(os.urandom(2**20)) * megabytes)
    return os.getpid()


kept: list[bytearray] = []


def _exists(path: Path) -> bool:
    return path.exists()


def _note_pid(file: str) -> None:
    Path(file).write_text(str(os.getpid()), encoding="ascii")
