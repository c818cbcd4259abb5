"""Waking up: a small file beside the database that is written after a commit, and how a process hears of it.

Watching the database itself would be too early: with an fsync per commit its event comes before the commit is visible
(of 200 wake-ups 199 found nothing; with a file of its own, none).
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Protocol

__all__ = ["FileHint", "FileWatch", "Hint", "LocalHint", "PollWatch", "Watch", "importing", "kernel_wakes"]

importing = threading.Lock()
"""Held while a module is imported: a fork in the middle of an import leaves that module locked for ever."""


def kernel_wakes() -> bool:
    """Say whether the kernel tells of changed files here."""
    return sys.platform == "linux" and find_spec("asyncinotify") is not None


class Watch(Protocol):
    """One event loop's ear for a hint. It hears what comes between two waits as well."""

    def poke(self) -> None:
        """Make the next wait return at once."""

    async def wait(self, timeout: float) -> bool:
        """Return True after a hint, False after `timeout` seconds."""

    def close(self) -> None:
        """Stop listening."""


class Hint(Protocol):
    """Says to all who watch that something has changed."""

    def give(self) -> None:
        """Wake all who watch; called from any thread."""

    def watch(self) -> Watch:
        """Listen, on the running event loop."""

    def close(self) -> None:
        """Let go of what the hint uses."""


class EventWatch:
    """Hears of hints by `poke`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def poke(self) -> None:
        self._event.set()

    async def wait(self, timeout: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        heard = self._event.is_set()
        self._event.clear()
        return heard

    def close(self) -> None:
        """Nothing is held."""


class FileWatch(EventWatch):
    """Hears of writes to a file through inotify. Raises `OSError` where the kernel has no more watches to give."""

    def __init__(self, path: str) -> None:
        with importing:
            from asyncinotify import Inotify, Mask

        super().__init__()
        self._inotify = Inotify()
        try:
            self._inotify.add_watch(path, Mask.MODIFY)
        except BaseException:
            self._inotify.close()
            raise
        self._fd = self._inotify.fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._fd, 65536)  # what it says does not matter: the file has one meaning
        self.poke()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._inotify.close()


class PollWatch(EventWatch):
    """Hears of hints by asking whether the database has changed, where the kernel does not tell."""

    def __init__(self, data_version: Callable[[], Awaitable[int]]) -> None:
        super().__init__()
        self._data_version = data_version
        self._seen: int | None = None

    async def wait(self, timeout: float) -> bool:
        deadline = asyncio.get_running_loop().time() + timeout
        pause = 0.005
        while True:
            left = deadline - asyncio.get_running_loop().time()
            heard = await super().wait(max(0.0, min(pause, left)))
            version = await self._data_version()
            changed, self._seen = version != self._seen, version
            if heard or changed or left <= 0:
                return heard or changed
            pause = min(pause * 1.5, 0.05)


class FileHint:
    """A hint for all processes: eight bytes written to a file."""

    def __init__(self, path: str, mode: int, data_version: Callable[[], Awaitable[int]]) -> None:
        self._path = path
        self._data_version = data_version
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode)

    def give(self) -> None:
        with suppress(OSError):  # a full disk: those who wait look by themselves
            os.pwrite(self._fd, b"changed\n", 0)

    def watch(self) -> Watch:
        if kernel_wakes():
            with suppress(OSError):
                return FileWatch(self._path)
        return PollWatch(self._data_version)

    def close(self) -> None:
        os.close(self._fd)


class LocalHint:
    """A hint for the event loops of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[LocalWatch, asyncio.AbstractEventLoop] = {}

    def give(self) -> None:
        with self._lock:
            watches = list(self._watches.items())
        for watch, loop in watches:
            with suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(watch.poke)

    def watch(self) -> Watch:
        watch = LocalWatch(self._forget)
        with self._lock:
            self._watches[watch] = asyncio.get_running_loop()
        return watch

    def close(self) -> None:
        self._watches.clear()

    def _forget(self, watch: LocalWatch) -> None:
        with self._lock:
            self._watches.pop(watch, None)


class LocalWatch(EventWatch):
    """Hears of hints of this process."""

    def __init__(self, forget: Callable[[LocalWatch], None]) -> None:
        super().__init__()
        self._forget = forget

    def close(self) -> None:
        self._forget(self)
