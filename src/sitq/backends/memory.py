"""Tasks in this process's memory: the reference implementation, every capability in one readable file.

Nothing outlives the process. All handles on one store (`clone`) share a `_Store` behind one lock; every method takes
the lock, lets time pass (`_Store.tick`), and changes plain Python objects. What is ready, due, leased, expiring and to be
purged waits in heaps whose entries carry the row's ticket: a row that has changed since has another ticket, and its
old entries are dropped when they come up.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any, Self

from sitq.backends._bytes import ByteBackend
from sitq.backends._view import expired_result, matches
from sitq.backends.base import Capability, check_move
from sitq.core import (
    CRASHED,
    Accepted,
    Cancelled,
    Extended,
    Held,
    NewTask,
    Outcome,
    OutcomeKind,
    Phase,
    QueueCounts,
    Reason,
    ReservedTask,
    Result,
    Status,
    Task,
    TaskFilter,
    TaskOptions,
    WorkerInfo,
    phase_of,
    utcnow,
)
from sitq.exceptions import InvalidTransitionError, TaskNotFoundError, ValidationError

__all__ = ["MemoryBackend", "MemoryTransaction"]

_OPERATOR = WorkerInfo(id="operator")
_RETENTION = {Status.COMPLETED: 86_400.0, Status.FAILED: 7 * 86_400.0}
_TASK_FIELDS = tuple(f.name for f in dataclasses.fields(Task))


@dataclass(slots=True)
class _Row:
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
class _Store:
    """The rows and their order. Every method is called with the lock held."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    rows: dict[str, _Row] = field(default_factory=dict)
    ready: dict[str, list[tuple[int, float, int, int, str]]] = field(default_factory=dict)
    timers: list[tuple[float, int, str, int, str]] = field(default_factory=list)
    staged: dict[str, _Row] = field(default_factory=dict)
    held: dict[str, set[str]] = field(default_factory=dict)
    unique: dict[str, str] = field(default_factory=dict)
    paused: set[str] = field(default_factory=set)
    workers: dict[str, WorkerInfo] = field(default_factory=dict)
    waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=set)
    seq: int = 0
    clock_offset: float = 0.0  # seconds; tests move it to let time pass

    def now(self) -> float:
        return time.time() + self.clock_offset

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

    def _timer(self, when: float, kind: str, row: _Row) -> None:
        heappush(self.timers, (when, row.seq, kind, row.ticket, row.task.id))

    def _push_ready(self, row: _Row) -> None:
        entry = (-row.options.priority, row.due, row.seq, row.ticket, row.task.id)
        heappush(self.ready.setdefault(row.options.queue, []), entry)
        self.wake()

    # --- the moves ----------------------------------------------------------------------------------------------------

    def queue(self, row: _Row, delay: float = 0.0, reason: str | None = None) -> None:
        """Make a row queued, to run after `delay` seconds."""
        self._let_go(row)
        task = row.task
        task.status, task.reason, task.worker_id, task.lease_expires_at = Status.QUEUED, reason, None, None
        task.cancel_requested = False
        if delay > 0:
            row.due = self.now() + delay
            task.eta = datetime.fromtimestamp(row.due, UTC)
        self.arm(row)

    def arm(self, row: _Row) -> None:
        """Set the timers of a queued row, or make it ready."""
        row.ticket += 1
        if row.options.expires_at is not None:
            self._timer(row.options.expires_at.timestamp(), "expires", row)
        if row.due > self.now():
            self._timer(row.due, "due", row)
            self.wake()
        else:
            self._push_ready(row)

    def run(self, row: _Row, worker: WorkerInfo) -> None:
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

    def lease(self, row: _Row, seconds: float) -> None:
        row.ticket += 1
        row.lease_until = self.monotonic() + seconds
        row.task.lease_expires_at = datetime.fromtimestamp(self.now() + seconds, UTC)
        self._timer(self.now() + seconds, "lease", row)

    def end(self, row: _Row, status: Status, result: Result | None) -> None:
        """Make a row completed or failed, for as long as its retention says."""
        self._let_go(row)
        row.ticket += 1
        task = row.task
        task.status, task.worker_id, task.lease_expires_at = status, None, None
        task.reason = result.reason if result else None
        row.result = result
        retention = row.options.retention
        row.purge_at = max(self.now() + (_RETENTION[status] if retention is None else retention), row.unique_until)
        self.wake()

    def _let_go(self, row: _Row) -> None:
        if row.task.worker_id is not None:
            self.held[row.task.worker_id].discard(row.task.id)

    # --- finding --------------------------------------------------------------------------------------------------------

    def take(self, queues: Sequence[str] | None) -> _Row | None:
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

    def holder(self, key: str) -> _Row | None:
        """Return the row that holds a unique key now."""
        task_id = self.unique.get(key, "")
        row = self.rows.get(task_id) or self.staged.get(task_id)
        if row is None or (row.task.status in (Status.COMPLETED, Status.FAILED) and row.unique_until <= self.now()):
            return None
        return row

    def known(self, task_id: str) -> _Row:
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


class MemoryTransaction:
    """A unit of work on a `MemoryBackend`: what is enqueued in it is stored when the `with` block ends without error."""

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._staged: dict[str, _Row] | None = None

    def __enter__(self) -> Self:
        self._staged = {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        with self._store.lock:
            for task_id, row in (self._staged or {}).items():
                del self._store.staged[task_id]
                if kind is None:
                    self._store.rows[task_id] = row
                    self._store.arm(row)
            self._staged = None


class MemoryBackend(ByteBackend):
    """Keeps tasks in memory: for tests, and for work that may die with its process. Durability: none."""

    capabilities = ~Capability(0)
    poll_interval = 5.0

    def __init__(self) -> None:
        self._store = _Store()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make the backend for `memory://`: a store of its own at each call."""
        if url.rstrip("/") != "memory:":
            raise ValidationError(f"a store in memory has no address: write memory://, not {url}")
        return cls()

    def clone(self) -> Self:
        other = type(self)()
        other._store = self._store
        return other

    def transaction(self) -> MemoryTransaction:
        """Return a transaction for `options(connection=…)`; open it with `with`."""
        return MemoryTransaction(self._store)

    # --- enqueue, reserve, settle ---------------------------------------------------------------------------------------

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        with self._store.lock:
            self._store.tick()
            return [self._accept(new.task) for new in tasks]

    def _accept(self, task: Task, staged: dict[str, _Row] | None = None) -> Accepted:
        """Store a task, or with `staged` keep it there until its transaction commits."""
        store, options = self._store, task.options or TaskOptions()
        if task.id in store.rows or task.id in store.staged:
            return Accepted(id=task.id, created=False)
        holder = store.holder(options.unique) if options.unique is not None else None
        if holder is not None:
            return Accepted(id=holder.task.id, created=False)
        store.seq += 1
        due = max(task.created_at, task.eta or task.created_at).timestamp()
        row = _Row(task=dataclasses.replace(task, options=options), seq=store.seq, options=options, due=due)
        if options.unique is not None:
            store.unique[options.unique] = task.id
            row.unique_until = store.now() + (options.unique_for or 0.0)
        if staged is None:
            store.rows[task.id] = row
            store.arm(row)
        else:
            staged[task.id] = store.staged[task.id] = row
        return Accepted(id=task.id)

    async def enqueue_in(self, connection: Any, tasks: Sequence[NewTask]) -> list[Accepted]:
        if not isinstance(connection, MemoryTransaction) or connection._store is not self._store:
            raise ValidationError("the connection for tasks in memory is the transaction() of the same backend")
        if connection._staged is None:
            raise ValidationError("the transaction is not open: use it in a `with` block")
        with self._store.lock:
            self._store.tick()
            return [self._accept(new.task, connection._staged) for new in tasks]

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        store = self._store
        reserved: list[ReservedTask] = []
        with store.lock:
            store.tick()
            store.workers[worker.id] = dataclasses.replace(worker, seen_at=utcnow())
            while len(reserved) < max_tasks and (row := store.take(worker.queues)) is not None:
                if row.task.cancel_requested:  # its worker died with the request unanswered
                    self._end_cancelled(row)
                    continue
                store.run(row, worker)
                fields = {name: getattr(row.task, name) for name in _TASK_FIELDS}
                reserved.append(ReservedTask(**fields, reserved_at=utcnow()))
        return reserved

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        with self._store.lock:
            self._store.tick()
            return [self._settle(outcome) for outcome in outcomes]

    def _settle(self, outcome: Outcome) -> bool:
        row = self._store.rows.get(outcome.task_id)
        if row is None or row.task.fence != outcome.fence:
            return False
        if row.task.status != Status.RUNNING:
            return True  # this fence has settled before
        if outcome.kind in (OutcomeKind.COMPLETED, OutcomeKind.FAILED):
            self._store.end(row, Status(outcome.kind.value), outcome.result)
        elif row.task.cancel_requested:
            self._end_cancelled(row)
        else:
            if outcome.kind == OutcomeKind.RELEASED:
                row.task.attempt -= 1
            elif outcome.reason == CRASHED:
                row.task.crashes += 1
                row.task.solo_crashes += 1
            self._store.queue(row, outcome.delay, outcome.reason)
        return True

    def _end_cancelled(self, row: _Row) -> None:
        task, reason = row.task, Reason.CANCELLED
        self._store.end(row, Status.FAILED, Result(
            task_id=task.id, status="failed", error="cancelled", reason=reason, attempts=task.attempt,
            enqueued_at=task.created_at, finished_at=utcnow(),
        ))  # fmt: skip

    # --- waiting ----------------------------------------------------------------------------------------------------------

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        await self._wait(timeout, lambda: self._has_work(worker))

    def _has_work(self, worker: WorkerInfo) -> bool:
        queues = self._store.ready if worker.queues is None else worker.queues
        return any(self._store.ready.get(queue) for queue in queues if queue not in self._store.paused)

    async def wait_for_result(self, task_id: str, timeout: float) -> Result | None:
        result: list[Result | None] = [None]

        def there() -> bool:
            result[0] = self._result(task_id)
            return result[0] is not None

        await self._wait(timeout, there)
        return result[0]

    async def _wait(self, timeout: float, there: Callable[[], bool]) -> None:
        """Return when `there()` holds, or after `timeout` seconds."""
        store, event = self._store, asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        deadline = time.monotonic() + timeout
        with store.lock:
            store.waiters.add(waiter)
        try:
            while True:
                event.clear()
                with store.lock:
                    store.tick()
                    left, change = deadline - time.monotonic(), store.next_change()
                    if there() or left <= 0:
                        return
                try:
                    async with asyncio.timeout(left if change is None else max(min(left, change), 0.001)):
                        await event.wait()
                except TimeoutError:
                    continue
        finally:
            with store.lock:
                store.waiters.discard(waiter)

    # --- one task, by hand --------------------------------------------------------------------------------------------------

    async def get_task(self, task_id: str) -> Task | None:
        with self._store.lock:
            self._store.tick()
            row = self._store.rows.get(task_id)
            return None if row is None else dataclasses.replace(row.task)

    async def update_task_status(self, task_id: str, status: str) -> None:
        store = self._store
        with store.lock:
            row = store.known(task_id)
            new = check_move(task_id, row.task.status, status)
            if new == row.task.status:
                return
            if new == Status.RUNNING:
                store.run(row, _OPERATOR)
            elif new == Status.QUEUED:
                if not self._requeue(row):
                    raise InvalidTransitionError(f"task {task_id!r} cannot be queued: its unique key is taken by another")
            else:
                row.task.fence = (row.task.fence or 0) + 1
                store.end(row, new, row.result)

    def _requeue(self, row: _Row) -> bool:
        key = row.options.unique
        if key is not None:
            holder = self._store.holder(key)
            if holder is not None and holder is not row:
                return False
            self._store.unique[key] = row.task.id
        task = row.task
        if task.status != Status.RUNNING:
            task.attempt = task.crashes = task.solo_crashes = 0
            row.result = None
        task.fence = (task.fence or 0) + 1
        self._store.queue(row)
        return True

    async def _write_result(self, task_id: str, result: Result) -> None:
        with self._store.lock:
            self._store.known(task_id).result = result

    async def _read_result(self, task_id: str) -> Result | None:
        with self._store.lock:
            self._store.tick()
            return self._result(task_id)

    def _result(self, task_id: str) -> Result | None:
        row = self._store.rows.get(task_id)
        return row.result if row else None

    # --- leases ---------------------------------------------------------------------------------------------------------------

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        store = self._store
        lost, cancelled = set(), set()
        with store.lock:
            store.tick()
            store.workers[worker.id] = dataclasses.replace(worker, seen_at=utcnow())
            for item in held:
                row = store.rows.get(item.id)
                if row is None or row.task.status != Status.RUNNING or row.task.fence != item.fence:
                    lost.add(item.id)
                    continue
                store.lease(row, worker.lease)
                if item.progress is not None:
                    row.task.progress = item.progress
                if row.task.cancel_requested:
                    cancelled.add(item.id)
            self._give_back_unheard(worker, {item.id for item in held})
        return Extended(lost=frozenset(lost), cancelled=frozenset(cancelled))

    def _give_back_unheard(self, worker: WorkerInfo, named: set[str]) -> None:
        unheard = self._store.held.get(worker.id, set()) - named
        for row in [self._store.rows[task_id] for task_id in unheard]:
            if self._store.monotonic() - row.reserved_at > worker.lease / 2:
                row.task.attempt -= 1
                self._store.queue(row)

    async def abandon_worker(self, worker_id: str) -> int:
        with self._store.lock:
            self._store.workers.pop(worker_id, None)
            rows = [self._store.rows[task_id] for task_id in self._store.held.get(worker_id, ())]
            for row in rows:
                self._store.lease(row, 0.0)
            self._store.tick()
            return len(rows)

    # --- operators ----------------------------------------------------------------------------------------------------------------

    async def cancel_tasks(self, task_ids: Sequence[str]) -> list[Cancelled]:
        with self._store.lock:
            self._store.tick()
            return [self._cancel(task_id) for task_id in task_ids]

    def _cancel(self, task_id: str) -> Cancelled:
        row = self._store.rows.get(task_id)
        if row is None:
            return Cancelled.UNKNOWN
        if row.task.status == Status.QUEUED:
            self._end_cancelled(row)
            return Cancelled.CANCELLED
        if row.task.status == Status.RUNNING:
            row.task.cancel_requested = True
            return Cancelled.REQUESTED
        return Cancelled.FINISHED

    async def requeue_tasks(self, task_ids: Sequence[str]) -> list[bool]:
        with self._store.lock:
            self._store.tick()
            rows = [self._store.rows.get(task_id) for task_id in task_ids]
            return [row is not None and row.task.status in _RETENTION and self._requeue(row) for row in rows]

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        with self._store.lock:
            self._store.tick()
            rows = list(self._matching(wanted or TaskFilter()))[:limit]
            return [dataclasses.replace(row.task, payload=None) for row in rows]

    def _matching(self, wanted: TaskFilter) -> Iterator[_Row]:
        now = utcnow() + timedelta(seconds=self._store.clock_offset)
        last = self._store.rows.get(wanted.after or "")
        for row in sorted(self._store.rows.values(), key=lambda row: -row.seq):
            if (last is None or row.seq < last.seq) and matches(row.task, wanted, now):
                yield row

    async def count_tasks(self) -> list[QueueCounts]:
        with self._store.lock:
            self._store.tick()
            now = utcnow() + timedelta(seconds=self._store.clock_offset)
            phases: dict[str, dict[str, int]] = {queue: {} for queue in self._store.paused}
            oldest: dict[str, float] = {}
            for row in self._store.rows.values():
                queue, phase = row.options.queue, phase_of(row.task, now)
                counts = phases.setdefault(queue, {})
                counts[phase] = counts.get(phase, 0) + 1
                if phase == Phase.READY:
                    oldest[queue] = min(row.due, oldest.get(queue, row.due))
            return [
                QueueCounts(
                    queue=queue,
                    phases=phases[queue],
                    paused=queue in self._store.paused,
                    oldest_ready=datetime.fromtimestamp(oldest[queue], UTC) if queue in oldest else None,
                )
                for queue in sorted(phases)
            ]

    async def list_workers(self) -> list[WorkerInfo]:
        with self._store.lock:
            now = utcnow()
            workers = [w for w in self._store.workers.values() if w.seen_at is not None]
            return [w for w in workers if w.seen_at is not None and now - w.seen_at < timedelta(seconds=w.lease)]

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        with self._store.lock:
            self._store.tick()
            now = self._store.now()
            ended = [row for row in self._matching(wanted or TaskFilter()) if row.task.status in _RETENTION]
            gone = [row for row in ended if wanted is not None or row.purge_at <= now][:limit]
            for row in gone:
                del self._store.rows[row.task.id]
                key = row.options.unique
                if key is not None and self._store.unique.get(key) == row.task.id:
                    del self._store.unique[key]
            return len(gone)

    async def pause_queue(self, queue: str, paused: bool) -> None:
        with self._store.lock:
            (self._store.paused.add if paused else self._store.paused.discard)(queue)
            self._store.wake()
