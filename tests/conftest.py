"""Every test leaves the process as it found it: no thread, child process, open file or asyncio task stays behind."""

import asyncio
import gc
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from hypothesis import settings

from sitq import TaskQueue
from sitq.backends.base import Backend
from stores import SERVERS, STORES

GRACE = 5.0  # seconds for what is already on its way out

settings.register_profile("sitq", deadline=None)  # a busy machine is not a failure
settings.load_profile("sitq")

# Python keeps one for the whole process: started now, it never looks like a leak of the first test that needs it.
resource_tracker.ensure_running()


def threads() -> dict[str, str]:
    """Return the threads that would keep this process from ending."""
    return {str(thread.ident): repr(thread) for thread in threading.enumerate() if not thread.daemon}


def children() -> dict[str, str]:
    """Return the child processes and their command lines (Linux; elsewhere none are seen)."""
    found = {}
    for listing in Path("/proc/self/task").glob("*/children"):
        for pid in _read(listing).split():
            command = _read(Path("/proc", pid, "cmdline")).replace("\0", " ").strip()
            found[pid] = f"process {pid}: {command or 'ended, but nobody waited for it'}"
    return found


def files() -> dict[str, str]:
    """Return the open file descriptors and what they lead to (Linux; elsewhere none are seen)."""
    found = {}
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            found[descriptor.name] = f"descriptor {descriptor.name}: {os.readlink(descriptor)}"  # noqa: PTH115
        except FileNotFoundError:  # the one that listed the folder
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # gone in the meantime
        return ""


def _left_behind(before: dict[str, str], look: Callable[[], dict[str, str]]) -> list[str]:
    """Return what is new since `before`, once it has had `GRACE` seconds to go away."""
    deadline = time.monotonic() + GRACE
    while len(now := look()) > len(before):
        if time.monotonic() > deadline:
            return [what for key, what in now.items() if before.get(key) != what]
        gc.collect()
        time.sleep(0.01)  # the system tells nobody when a process or a descriptor is gone
    return []


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or an open file behind."""
    looks = (threads, children, files)
    before = [look() for look in looks]
    yield
    left = [what for then, look in zip(before, looks, strict=True) for what in _left_behind(then, look)]
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
async def _pending_tasks() -> AsyncIterator[None]:
    yield
    deadline = time.monotonic() + GRACE
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        if time.monotonic() > deadline:
            pytest.fail("the test left asyncio tasks pending:\n  " + "\n  ".join(map(repr, left)), pytrace=False)
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def no_pending_tasks(request: pytest.FixtureRequest, no_leaks: None) -> None:
    """Fail an async test that leaves asyncio tasks running; a plain test gets no event loop for it."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("_pending_tasks")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the server of a test's store before the test counts its child processes."""
    callspec = getattr(item, "callspec", None)
    start = SERVERS.get(callspec.params.get("backend", "")) if callspec else None
    if start is not None:
        start()


@pytest.fixture(params=list(STORES))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Return a fresh backend of each built-in kind."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def queue(backend: Backend) -> AsyncIterator[TaskQueue]:
    """Return a queue on a fresh store of each built-in kind."""
    async with TaskQueue(backend) as queue:
        yield queue
