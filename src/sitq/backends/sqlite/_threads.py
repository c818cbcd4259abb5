"""What the threads of a store do: the writer commits batches, the reader answers questions."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sitq._group_commit import Lane, Operation
from sitq.backends.sqlite import _errors, _open
from sitq.backends.sqlite._accept import accept
from sitq.backends.sqlite._clock import Clock
from sitq.backends.sqlite._hints import FileHint, LocalHint
from sitq.backends.sqlite._work import Transaction
from sitq.exceptions import BackendError, SitqError

if TYPE_CHECKING:
    from sitq.backends.sqlite._store import Settings, Store

__all__ = ["ANY_CLOCK", "Reader", "Writer"]

ANY_CLOCK = Clock()
_CHANGES_PER_CHECKPOINT = 8000  # 4,000 or 40,000 are as fast; this keeps the log near 6 MB
_BYTES_PER_CHECKPOINT = 16 * 1024 * 1024
_sync_file = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


class Executor:
    """What writer and reader have in common."""

    connection: sqlite3.Connection
    _suspended = False

    def __init__(self, store: Store) -> None:
        self._store = store

    def suspend(self) -> None:
        """Close the connection, so that a fork inherits none; the next batch opens another."""
        if self._store.is_file:
            self._disconnect()
            self._suspended = True

    def _disconnect(self) -> None:
        self.connection.close()

    def is_about_data(self, error: Exception) -> bool:
        return _errors.is_about_data(error)

    def explain(self, error: Exception) -> BackendError:
        return _errors.explain(error, self._store.settings.path)

    def tidy(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self._disconnect()


class Reader(Executor):
    """Answers reads, each in its own short transaction."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._connect()

    def _connect(self) -> None:
        self.connection = _open.connect(self._store.settings.path, self._store.settings.busy_timeout)
        self.connection.execute("PRAGMA query_only = TRUE")
        self._suspended = False

    def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        if self._suspended:
            self._connect()
        return [self._answer(operation) for operation in batch]

    def _answer(self, operation: Operation[Any]) -> Any:
        try:
            return operation.work(self.connection)
        except SitqError as error:  # an answer like any other
            return error


class Writer(Executor):
    """Runs batches, each in one `BEGIN IMMEDIATE` transaction, and wakes who waits for them.

    With durability "full" the writer itself syncs the log, after the commit: meanwhile others may write, and a worker
    that was woken starts on the task. Its id is not returned before it is on disk. Only with "strict", where nobody
    may even see what a power cut could take back, does SQLite sync within the commit.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._path = store.settings.path
        self._timeout = store.settings.busy_timeout
        self._ckpt: int | None = None
        self._log: int | None = None
        self._log_failed = False
        self._level = ""
        self._checkpointed = self._written = 0
        self._connect()
        try:
            self._open_beside(store.settings)
        except BaseException:
            self._disconnect()
            raise

    def _connect(self) -> None:
        settings = self._store.settings
        self.connection = _open.open_database(self._path, settings.file_mode, settings.adopt, self._timeout)
        try:
            self._store.epoch = _open.prepare(self.connection, self._path, self._timeout)
            if self._store.is_file:  # nobody removes the log while a connection is open
                self._log = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
        except BaseException as error:
            self._disconnect()
            if isinstance(error, sqlite3.Error):
                raise self.explain(error) from error
            raise
        self._level = "FULL"
        self._checkpointed = self.connection.total_changes
        self._suspended = False

    def _disconnect(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None
        super()._disconnect()

    def _open_beside(self, settings: Settings) -> None:
        if not self._store.is_file:
            self._store.work, self._store.done = LocalHint(), LocalHint()
            return
        read_version = self._store.data_version
        self._store.work = FileHint(f"{self._path}-wake", settings.file_mode, read_version)
        self._store.done = FileHint(f"{self._path}-done", settings.file_mode, read_version)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._ckpt = os.open(f"{self._path}-ckpt", flags, settings.file_mode)

    def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        if self._suspended:
            self._connect()
        accepts = [operation for operation in batch if operation.lane == Lane.ACCEPT]
        works = [operation for operation in batch if operation.lane != Lane.ACCEPT]
        self._begin()
        tx = Transaction(self.connection, self._store.epoch)
        try:
            results: dict[Operation[Any], Any] = self._accept(tx, accepts) if accepts else {}
            for operation in works:
                results[operation] = self._work(tx, operation)
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:  # a full disk may have ended it
                self.connection.execute("ROLLBACK")
            raise
        self._written += sum(operation.size for operation in batch)
        if tx.wake:
            self._store.work.give()
        if tx.done:
            self._store.done.give()
        if accepts and self._store.durability == "full" and (error := self._sync()):
            results |= {operation: self._unsynced(error) for operation in accepts}  # an error each
        return [results[operation] for operation in batch]

    def _begin(self) -> None:
        level = "FULL" if self._store.durability == "strict" else "NORMAL"
        if level != self._level:
            self.connection.execute(f"PRAGMA synchronous = {level}")
            self._level = level
        _open.retry_busy(lambda: self.connection.execute("BEGIN IMMEDIATE"), self._timeout)

    def _sync(self) -> Exception | None:
        """Have everything in the log on disk, other processes' commits included; return what went wrong.

        Called also when nothing was written: the task that holds a unique key may be another process's last commit.
        """
        if self._log is None:
            return None
        try:
            # The kernel tells of a failed write once, and takes it for written from then on. Recovery would end there,
            # and not see what follows in the log: so nothing does before all of it is in the database.
            if self._log_failed:
                self._restart_log()
            _sync_file(self._log)
        except (OSError, sqlite3.Error) as error:
            self._log_failed = True
            return error
        return None

    def _unsynced(self, error: Exception) -> BackendError:
        failure = BackendError(
            f"{self._path}: the disk did not take the log ({error}): check the disk and the system's log; the tasks "
            "may be stored all the same"
        )
        failure.__cause__ = error
        return failure

    def _restart_log(self) -> None:
        with self._alone_at_checkpoint():
            busy, *_ = self.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        if busy:
            raise BlockingIOError("after a failed write the log cannot be written anew while others read it")
        self._log_failed = False

    def _accept(self, tx: Transaction, operations: list[Operation[Any]]) -> dict[Operation[Any], Any]:
        """Insert the rows of all operations at once."""
        rows = [row for operation in operations for row in operation.work[1]]
        accepted = accept(tx.connection, rows, tx.at(operations[0].work[0]).now)
        tx.wake = True
        results, start = {}, 0
        for operation in operations:
            end = start + len(operation.work[1])
            results[operation] = accepted[start:end]
            start = end
        return results

    @staticmethod
    def _work(tx: Transaction, operation: Operation[Any]) -> Any:
        clock, work = operation.work
        try:
            return work(tx.at(clock))
        except SitqError as error:  # raised before anything was written: an answer like any other
            return error

    def tidy(self) -> None:
        """Checkpoint after many changes, unless another process is at it.

        Two that checkpoint and write at the same moment can lose commits in SQLite before 3.51.3 (the WAL-reset bug).
        """
        if self._suspended or not self._store.is_file:
            return
        changes = self.connection.total_changes - self._checkpointed
        if changes < _CHANGES_PER_CHECKPOINT and self._written < _BYTES_PER_CHECKPOINT:
            return
        self._checkpointed, self._written = self.connection.total_changes, 0
        with suppress(OSError, sqlite3.Error), self._alone_at_checkpoint():  # or the next one does it
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    @contextmanager
    def _alone_at_checkpoint(self) -> Iterator[None]:
        if sys.platform == "win32" or self._ckpt is None:
            yield
            return
        import fcntl

        fcntl.lockf(self._ckpt, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            fcntl.lockf(self._ckpt, fcntl.LOCK_UN)

    def close(self) -> None:
        super().close()
        self._store.work.close()
        self._store.done.close()
        if self._ckpt is not None:
            os.close(self._ckpt)
