"""Tasks in this process's memory: the reference implementation, every capability in one readable file.

Nothing outlives the process. All handles on one store (`clone`) share a `Store` behind one lock; every method takes the
lock, lets time pass (`Store.tick`), and changes plain Python objects.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from sitq.backends._bytes import ByteBackend
from sitq.backends._memory_store import Row, Store
from sitq.backends._view import RETENTION, matches
from sitq.backends.base import Capability, check_move
from sitq.core import (
    CRASHED,
    Accepted,
    Cancelled,
    Extended,
    Finding,
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
    Verdict,
    WorkerInfo,
    phase_of,
    utcnow,
)
from sitq.exceptions import BackendError, InvalidTransitionError, ValidationError

__all__ = ["MemoryBackend", "MemoryTransaction"]

_OPERATOR = WorkerInfo(id="operator")
_TASK_FIELDS = tuple(f.name for f in dataclasses.fields(Task))


class MemoryTransaction:
    """What is enqueued in it is stored when its `with` block ends without an error."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._staged: dict[str, Row] | None = None

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
        self._store = Store()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make the backend for `memory://`: a store of its own at each call."""
        if url.rstrip("/") != "memory:":
            raise ValidationError(f"a store in memory has no address: write memory://, not {url}")
        return cls()

    async def connect(self) -> None:
        if self._store.pid != os.getpid():
            raise BackendError("a store in memory stays in the process that made it: use a file for several processes")

    def clone(self) -> Self:
        other = type(self)()
        other._store = self._store
        return other

    def transaction(self) -> MemoryTransaction:
        """Return a transaction for `options(connection=…)`; open it with `with`."""
        return MemoryTransaction(self._store)

    async def diagnose(self) -> Sequence[Finding]:
        advice = "use sqlite:///tasks.db for work that must survive"
        return [
            Finding(name="store", value="the memory of this process"),
            Finding(name="durability", value="none: tasks end with the process", verdict=Verdict.WARN, advice=advice),
        ]

    # --- enqueue, reserve, settle -------------------------------------------------------------------------------------

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        with self._store.lock:
            self._store.tick()
            return [self._accept(new.task) for new in tasks]

    def _accept(self, task: Task, staged: dict[str, Row] | None = None) -> Accepted:
        """Store a task, or with `staged` keep it there until its transaction commits."""
        store, options = self._store, task.options or TaskOptions()
        if task.id in store.rows or task.id in store.staged:
            return Accepted(id=task.id, created=False)
        holder = store.holder(options.unique) if options.unique is not None else None
        if holder is not None:
            return Accepted(id=holder.task.id, created=False)
        store.seq += 1
        due = max(task.created_at, task.eta or task.created_at).timestamp()
        row = Row(task=dataclasses.replace(task, options=options), seq=store.seq, options=options, due=due)
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
            store.workers[worker.id] = dataclasses.replace(worker, seen_at=store.wall())
            while len(reserved) < max_tasks and (row := store.take(worker.queues)) is not None:
                if row.task.cancel_requested:  # its worker died with the request unanswered
                    self._end_cancelled(row)
                    continue
                store.run(row, worker)
                fields = {name: getattr(row.task, name) for name in _TASK_FIELDS}
                reserved.append(ReservedTask(**fields, reserved_at=store.wall()))
        return reserved

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        with self._store.lock:
            self._store.tick()
            return [self._settle(outcome) for outcome in outcomes]

    def _settle(self, outcome: Outcome) -> bool:
        row = self._store.rows.get(outcome.task_id)
        if row is None or outcome.fence is None or row.task.fence != outcome.fence:
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

    def _end_cancelled(self, row: Row) -> None:
        task, reason = row.task, Reason.CANCELLED
        self._store.end(row, Status.FAILED, Result(
            task_id=task.id, status="failed", error="cancelled", reason=reason, attempts=task.attempt,
            enqueued_at=task.created_at, finished_at=utcnow(),
        ))  # fmt: skip

    # --- waiting ------------------------------------------------------------------------------------------------------

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

    # --- one task, by hand --------------------------------------------------------------------------------------------

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
                    raise InvalidTransitionError(
                        f"task {task_id!r} cannot be queued: its unique key is taken by another"
                    )
            else:
                row.task.fence = (row.task.fence or 0) + 1
                store.end(row, new, row.result)

    def _requeue(self, row: Row) -> bool:
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
        if row.due > self._store.now():  # an operator who says "again" means now, not when it was to run before
            row.due, task.eta = self._store.now(), self._store.wall()
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

    # --- leases -------------------------------------------------------------------------------------------------------

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        store = self._store
        lost, cancelled = set(), set()
        with store.lock:
            store.tick()
            store.workers[worker.id] = dataclasses.replace(worker, seen_at=store.wall())
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
            if self._store.monotonic() - row.reserved_at <= worker.lease / 2:
                continue
            if row.task.cancel_requested:
                self._end_cancelled(row)
            else:
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

    # --- operators ----------------------------------------------------------------------------------------------------

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
            return [row is not None and row.task.status in RETENTION and self._requeue(row) for row in rows]

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        with self._store.lock:
            self._store.tick()
            rows = list(self._matching(wanted or TaskFilter()))[:limit]
            return [dataclasses.replace(row.task, payload=None) for row in rows]

    def _matching(self, wanted: TaskFilter) -> Iterator[Row]:
        now = self._store.wall()
        last = None if wanted.after is None else self._store.known(wanted.after)
        for row in sorted(self._store.rows.values(), key=lambda row: -row.seq):
            if (last is None or row.seq < last.seq) and matches(row.task, wanted, now):
                yield row

    async def count_tasks(self) -> list[QueueCounts]:
        with self._store.lock:
            self._store.tick()
            now = self._store.wall()
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
            now = self._store.wall()
            workers = [w for w in self._store.workers.values() if w.seen_at is not None]
            return [w for w in workers if w.seen_at is not None and now - w.seen_at < timedelta(seconds=w.lease)]

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        with self._store.lock:
            self._store.tick()
            now = self._store.now()
            ended = [row for row in self._matching(wanted or TaskFilter()) if row.task.status in RETENTION]
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
