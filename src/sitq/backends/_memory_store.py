"""The rows of the store in memory and their order in time; `memory` makes a backend of it.

What is ready, due, leased and expiring waits in heaps whose entries carry the row's ticket: a row that has changed
since has another ticket, and its old entries are dropped when they come up.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush

from sitq.backends._view import RETENTION, expired_result
from sitq.core import Result, Status, Task, TaskOptions, WorkerInfo
from sitq.exceptions import TaskNotFoundError

__all__ = ["Row", "Store"]


@dataclass(slots=True)
class Row:
    """A task with what only the store knows of it. `due` is wall time, `lease_until` the monotonic clock."""

    task: Task
    seq: int
    options: TaskOptions
    due: float
    unique_until: float = 0.0
    lease_until: float = 0.0
    reserved_at: float = 0.0
    purge_at: float = 0.0
    ticket: int = 0
    result: Result | None = None


@dataclass(slots=True)
class Store:
    """The rows and their order. Every method is called with the lock held."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    rows: dict[str, Row] = field(default_factory=dict)
    ready: dict[str, list[tuple[int, float, int, int, str]]] = field(default_factory=dict)
    timers: list[tuple[float, int, str, int, str]] = field(default_factory=list)
    staged: dict[str, Row] = field(default_factory=dict)
    held: dict[str, set[str]] = field(default_factory=dict)
    unique: dict[str, str] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    workers: dict[str, WorkerInfo] = field(default_factory=dict)
    waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=set)
    seq: int = 0
    pid: int = field(default_factory=os.getpid)
    clock_offset: float = 0.0  # seconds; tests move it to let time pass

    def now(self) -> float:
        return time.time() + self.clock_offset

    def wall(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)

    def monotonic(self) -> float:
        return time.monotonic() + self.clock_offset

    # --- time: rows become ready, expire, lose their lease ------------------------------------------------------------

    def tick(self) -> None:
        """Do what has come due since the last call."""
        now, lease_now = self.now(), self.monotonic()
        while self.timers and self.timers[0][0] <= now:
            _, _, kind, ticket, task_id = heappop(self.timers)
            row = self.rows.get(task_id)
            if row is None or row.ticket != ticket:
                continue
            if kind == "due":
                self._push_ready(row)
            elif kind == "expires":
                self.end(row, Status.FAILED, expired_result(row.task))
            elif row.lease_until <= lease_now:
                self._push_ready(row)
            else:
                self._timer(now + row.lease_until - lease_now, "lease", row)

    def next_change(self) -> float | None:
        """Return in how many seconds a row may become ready by itself."""
        return self.timers[0][0] - self.now() if self.timers else None

    def _timer(self, when: float, kind: str, row: Row) -> None:
        heappush(self.timers, (when, row.seq, kind, row.ticket, row.task.id))

    def _push_ready(self, row: Row) -> None:
        entry = (-row.options.priority, row.due, row.seq, row.ticket, row.task.id)
        heappush(self.ready.setdefault(row.options.queue, []), entry)
        self.wake()

    # --- the moves ----------------------------------------------------------------------------------------------------

    def queue(self, row: Row, delay: float = 0.0, reason: str | None = None) -> None:
        """Make a row queued, to run after `delay` seconds."""
        self._let_go(row)
        task = row.task
        task.status, task.reason, task.worker_id, task.lease_expires_at = Status.QUEUED, reason, None, None
        task.cancel_requested = False
        if delay > 0:
            row.due = self.now() + delay
            task.eta = datetime.fromtimestamp(row.due, UTC)
        self.arm(row)

    def arm(self, row: Row) -> None:
        """Set the timers of a queued row, or make it ready."""
        row.ticket += 1
        if row.options.expires_at is not None:
            self._timer(row.options.expires_at.timestamp(), "expires", row)
        if row.due > self.now():
            self._timer(row.due, "due", row)
            self.wake()
        else:
            self._push_ready(row)

    def run(self, row: Row, worker: WorkerInfo) -> None:
        """Reserve a row for a worker; a row that is running already is taken over."""
        task = row.task
        if task.status == Status.RUNNING:
            task.crashes += 1
        self._let_go(row)
        task.status, task.worker_id = Status.RUNNING, worker.id
        task.attempt += 1
        task.fence = (task.fence or 0) + 1
        row.reserved_at = self.monotonic()
        self.held.setdefault(worker.id, set()).add(task.id)
        self.lease(row, worker.lease)

    def lease(self, row: Row, seconds: float) -> None:
        row.ticket += 1
        row.lease_until = self.monotonic() + seconds
        row.task.lease_expires_at = datetime.fromtimestamp(self.now() + seconds, UTC)
        self._timer(self.now() + seconds, "lease", row)

    def end(self, row: Row, status: Status, result: Result | None) -> None:
        """Make a row completed or failed, for as long as its retention says."""
        self._let_go(row)
        row.ticket += 1
        task = row.task
        task.status, task.worker_id, task.lease_expires_at = status, None, None
        task.reason = result.reason if result else None
        row.result = result
        retention = row.options.retention
        row.purge_at = max(self.now() + (RETENTION[status] if retention is None else retention), row.unique_until)
        self.wake()

    def _let_go(self, row: Row) -> None:
        if row.task.worker_id is not None:
            self.held[row.task.worker_id].discard(row.task.id)

    # --- finding ------------------------------------------------------------------------------------------------------

    def take(self, queues: Sequence[str] | None) -> Row | None:
        """Return the next row to reserve from these queues, or None."""
        best: list[tuple[int, float, int, int, str]] | None = None
        for queue in self.ready if queues is None else queues:
            heap = self.ready.get(queue, [])
            while heap and self._stale(heap[0]):
                heappop(heap)
            if heap and queue not in self.paused and (best is None or heap[0] < best[0]):
                best = heap
        return self.rows[heappop(best)[4]] if best else None

    def _stale(self, entry: tuple[int, float, int, int, str]) -> bool:
        row = self.rows.get(entry[4])
        return row is None or row.ticket != entry[3]

    def holder(self, key: str) -> Row | None:
        """Return the row that holds a unique key now."""
        task_id = self.unique.get(key, "")
        row = self.rows.get(task_id) or self.staged.get(task_id)
        if row is None or (row.task.status in (Status.COMPLETED, Status.FAILED) and row.unique_until <= self.now()):
            return None
        return row

    def known(self, task_id: str) -> Row:
        self.tick()
        row = self.rows.get(task_id)
        if row is None:
            raise TaskNotFoundError(task_id)
        return row

    def wake(self) -> None:
        """Wake all waiters; each looks for itself."""
        for loop, event in self.waiters:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
