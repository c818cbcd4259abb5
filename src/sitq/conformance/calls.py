"""The functions the suite puts into queues; they can be imported in every process that runs them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

from sitq.current import current_task
from sitq.exceptions import Defer

__all__ = ["Tally", "add", "defer_once", "fail", "flaky", "note", "stamp", "wait_long"]


def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


def fail(text: str) -> None:
    """Fail with `text`."""
    raise RuntimeError(text)


class Tally:
    """What ran in this process, by key: how often, and when (seconds since 1970)."""

    _lock = threading.Lock()
    _times: dict[str, list[float]] = {}  # noqa: RUF012 (one for the process, on purpose)

    @classmethod
    def add(cls, key: str) -> int:
        """Note one more run under `key`; return how many there are now."""
        with cls._lock:
            times = cls._times.setdefault(key, [])
            times.append(time.time())
            return len(times)

    @classmethod
    def times(cls, key: str) -> list[float]:
        """Return when `key` ran."""
        with cls._lock:
            return list(cls._times.get(key, []))


async def stamp(key: str) -> int:
    """Note a run; return which run it was."""
    return Tally.add(key)


async def flaky(key: str, failures: int) -> int:
    """Fail the first `failures` times; return which run it was."""
    run = Tally.add(key)
    if run <= failures:
        raise RuntimeError(f"run {run} fails")
    return run


async def defer_once(key: str, delay: float) -> int:
    """Ask to be run again after `delay` seconds, once; return which run it was."""
    run = Tally.add(key)
    if run == 1:
        raise Defer(delay)
    return run


async def wait_long(key: str) -> None:
    """Note a run, and stay until stopped."""
    Tally.add(key)
    await asyncio.sleep(3600)


def note(ledger: str, seconds: float = 0.0) -> str:
    """Write this run into a file that is synced before it goes on: `id attempt fence`."""
    current = current_task()
    append_line(Path(ledger), f"{current.id} {current.attempt} {current.fence}")
    time.sleep(seconds)  # work of some length, for a signal to hit
    return current.id


def append_line(path: Path, line: str) -> None:
    """Append a line in one write and have it on the disk before returning."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
