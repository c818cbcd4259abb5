"""One open file in one process: its writer and reader threads, shared by every handle on it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sitq._group_commit import CommitThread, Lane, Operation
from sitq.backends.sqlite._clock import Clock
from sitq.backends.sqlite._hints import Hint, importing
from sitq.backends.sqlite._rows import NewRow
from sitq.backends.sqlite._threads import ANY_CLOCK, Reader, Writer
from sitq.backends.sqlite._work import Transaction
from sitq.core import Accepted
from sitq.exceptions import BackendError, SitqError

__all__ = ["DURABILITIES", "Settings", "Store", "acquire"]

T = TypeVar("T")

DURABILITIES = ("relaxed", "full", "strict")  # each keeps what the one before it keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a file is to be used."""

    path: str
    durability: str = "full"
    file_mode: int = 0o600
    busy_timeout: float = 30.0
    adopt: bool = False


class Store:
    """The file, and the threads that may touch it. Obtained by `acquire`, given back by `release`."""

    def __init__(self, settings: Settings, key: object) -> None:
        self.settings = settings
        self.durability = settings.durability
        self.pid = os.getpid()
        self.is_file = settings.path != ":memory:"
        self.epoch = 0
        self.references = 0
        self.work: Hint
        self.done: Hint
        self._key = key
        self._writer = CommitThread(lambda: Writer(self), f"sitq writer {settings.path}")
        self._reader = CommitThread(lambda: Reader(self), f"sitq reader {settings.path}") if self.is_file else None
        self._starting = threading.Lock()
        self._started = False
        self._opened = False

    async def opened(self) -> None:
        """Wait until the file is open. Raises `BackendError` or `SchemaError` when it cannot be."""
        await _wait(self._writer.opened)
        if self._reader is not None:
            with self._starting:
                if not self._started:
                    self._reader.start()
                    self._started = True
            await _wait(self._reader.opened)
        self._opened = True

    @property
    def is_open(self) -> bool:
        """Whether it has been opened and its writer lives."""
        return self._opened and not self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether the writer is gone, closed or dead: there is nothing to be had from this store any more."""
        return self._writer.has_ended

    def start(self) -> None:
        """Open the file, in the writer's thread."""
        self._writer.start()

    def pause(self) -> list[CommitThread]:
        """Close the connections, and return the threads that wait for `resume` before they open others."""
        threads = [self._writer] if self._reader is None else [self._writer, self._reader]
        return [thread for thread in threads if thread.pause(_FORK_WAITS)]

    async def release(self) -> None:
        """Give the store back; the last one to do so closes it."""
        with _lock:
            self.references -= 1
            if self.references or self.pid != os.getpid():
                return
            self._opened = False
            if _stores.get(self._key) is self:
                del _stores[self._key]
        threads = [self._writer]
        if self._reader is not None and self._started:
            threads.append(self._reader)
        for thread in reversed(threads):  # the writer is the last to leave, and SQLite tidies up after it
            thread.stop()
            await _wait(thread.closed)

    async def write(
        self, clock: Clock, work: Callable[[Transaction], T], unheard: Callable[[T], None] | None = None, size: int = 0
    ) -> T:
        """Run `work` in a transaction shared with whatever else waits."""
        return await self._writer.run(Operation(Lane.WORK, (clock, work), size, unheard))

    def write_unheard(self, clock: Clock, work: Callable[[Transaction], Any]) -> None:
        """Run `work` like `write`, its answer of no interest; called on an event loop or after its end."""
        operation: Operation[Any] = Operation(Lane.WORK, (clock, work))
        operation.future, operation.loop = _NOBODY, _NOBODY_LOOP
        with suppress(SitqError):
            self._writer.submit([operation])

    async def accept(self, rows: Sequence[NewRow], clock: Clock, size: int) -> list[Accepted]:
        """Store new tasks: all or none."""
        return await self._writer.run(Operation(Lane.ACCEPT, (clock, rows), size))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a connection that only reads."""
        if self._reader is None:
            return await self._writer.run(Operation(Lane.WORK, (ANY_CLOCK, lambda tx: work(tx.connection))))
        return await self._reader.run(Operation(Lane.WORK, work))

    async def data_version(self) -> int:
        """Return a number that changes when another connection has committed."""
        return await self.read(lambda connection: int(connection.execute("PRAGMA data_version").fetchone()[0]))


class _Nobody:
    """Stands for a future and a loop where nobody waits for an answer."""

    def cancelled(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return True

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        callback(*args)


_NOBODY: Any = _Nobody()
_NOBODY_LOOP: Any = _NOBODY


async def _wait(future: Future[None]) -> None:
    await asyncio.shield(asyncio.wrap_future(future))


# --- one store for each file and process ------------------------------------------------------------------------------

_lock = threading.Lock()
_stores: dict[object, Store] = {}
_inherited: list[Store] = []


def acquire(settings: Settings, key: object) -> Store:
    """Return the process's store for a file, opening it if need be. Asked for twice, the stronger durability holds."""
    with _lock:
        store = _stores.get(key)
        if store is None or store.has_ended:
            _refuse_inherited(settings.path)
            store = _stores[key] = Store(settings, key)
            store.start()
        store.references += 1
        store.durability = max(store.durability, settings.durability, key=DURABILITIES.index)
    return store


# --- fork -------------------------------------------------------------------------------------------------------------
#
# SQLite keeps in memory, for each file a process has open, which locks the process holds. A fork inherits these notes
# but no lock: its own connections would then take none, and a parent that closes removes the log under them. Seen: of
# six tasks acknowledged to a child, five were gone. So no connection is open while a process forks.

_FORK_WAITS = 5.0  # seconds for a batch in flight
_paused: list[CommitThread] = []
_open_at_fork: set[tuple[int, int]] = set()


def _before_fork() -> None:
    _lock.acquire()
    importing.acquire()
    for store in _stores.values():
        if store.is_file and store.pid == os.getpid():
            _paused.extend(store.pause())


def _after_fork_in_parent() -> None:
    while _paused:
        _paused.pop().resume()
    importing.release()
    _lock.release()


def _after_fork_in_child() -> None:
    """Forget the parent's stores, and note what was open all the same: a caller's own connection, for example."""
    global _lock  # noqa: PLW0603 (held since before the fork)
    _lock = threading.Lock()
    importing.release()
    _paused.clear()
    _inherited.extend(_stores.values())
    _stores.clear()
    _open_at_fork.clear()
    with suppress(OSError):
        for name in os.listdir("/dev/fd"):  # noqa: PTH208
            with suppress(OSError):
                found = os.fstat(int(name))
                if stat.S_ISREG(found.st_mode):
                    _open_at_fork.add((found.st_dev, found.st_ino))


def _refuse_inherited(path: str) -> None:
    if not _open_at_fork or path == ":memory:":
        return
    with suppress(FileNotFoundError):
        found = os.stat(path)  # noqa: PTH116
        if (found.st_dev, found.st_ino) in _open_at_fork:
            raise BackendError(
                f"{path} was open when this process was forked, and SQLite cannot bear that: close other connections "
                "to it before the fork, or start the process without one (spawn)"
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
