"""One stretch of a worker's work, from start to stop: reserve → start → settle, in one TaskGroup of named loops.

Reserved tasks wait in a backlog for a slot, run, and leave an outcome for the settle loop. `_held` has every task from
its reservation until the store has taken its outcome: that is what the heartbeat keeps alive and a stop waits for.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable
from contextlib import AsyncExitStack

from sitq._execute import Executor, Run
from sitq._lease import Heartbeat, held_of, note_extended
from sitq._limits import Limits
from sitq._memory import rss
from sitq._plan import Plan, plan_for
from sitq._prefetch import FEW, GIVE_BACK_AFTER, adapted, prefetch_limit, smoothed
from sitq._processes import ProcessPool
from sitq._report import Reporter
from sitq._settle import MOST_OWED, Settler
from sitq.core import CRASHED, Extended, Outcome, OutcomeKind, ReservedTask, WorkerInfo, utcnow
from sitq.events import EventName
from sitq.exceptions import BackendError, WorkerError
from sitq.queue import TaskQueue
from sitq.retry import backoff
from sitq.serialization import Serializer

__all__ = ["Session"]

logger = logging.getLogger("sitq")

_LOOK_AT_MEMORY_EVERY = 1.0
_LOOK_IF_EMPTY_EVERY = 0.5
_PURGE_EVERY = 60.0
_PURGE_BATCH = 500
_RESERVE_BATCH = 500
_AFTER_INTERRUPT = 5.0
_LET_START = 2  # turns of the event loop: in one a task starts, in the other the outcome of a short one is handed over


class Session:
    """The loops of one worker between start and stop."""

    def __init__(
        self,
        queue: TaskQueue,
        info: WorkerInfo,
        *,
        serializer: Serializer,
        slots: int,
        poll_interval: float | None,
        grace: float,
        until_empty: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.info = info
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self._queue = queue
        self._backend = queue.backend
        self._serializer = serializer
        self._slots = slots
        self._poll_interval = poll_interval
        self._grace = grace
        self._until_empty = until_empty
        self._limits = limits or Limits()
        self._report = Reporter(queue.listeners, info.id)
        self._plan: Plan
        self._executor: Executor
        self._settler = Settler(queue.backend, self._settled, self._dropped)
        self._held: dict[str, Run] = {}
        self._backlog: deque[Run] = deque()
        self._not_due: set[Run] = set()  # held for a store that hands tasks out before their eta
        self._running = 0
        self._average: float | None = None  # seconds that a task takes
        self._waited = 0.0  # seconds that the last one had waited for its slot
        self._most_ahead = min(FEW, queue.backend.prefetch)
        self._stopping = False
        self._hurry = False  # asked to stop twice: no grace
        self._retiring = False  # stopping by itself, at a limit
        self._room = asyncio.Event()  # more could be reserved
        self._refill_at = 0  # so few in the backlog that more are wanted; kept, since the start of every task asks
        self._crowded = asyncio.Event()  # tasks wait for a slot
        self._calm = asyncio.Event()  # nothing is held
        self._pause: asyncio.Timeout | None = None  # the wait that a stop cuts short
        self._context = contextvars.copy_context()

    @property
    def counts(self) -> Counter[str]:
        """Outcomes the store has taken, by kind."""
        return self._report.counts

    # --- life ---------------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Begin to stop; a second call cuts the grace short. Called on the worker's loop."""
        self._hurry = self._stopping and not self._retiring
        self._retiring = False
        self._end_reserving()

    def retire(self, why: str) -> None:
        """Stop because a limit is reached: what runs may take as long as it takes, unless a stop is asked for."""
        if not self._stopping:
            logger.info("worker %s retires: %s", self.info.id, why)
            self._retiring = True
            self._end_reserving()
            self._limits.on_reached()

    def _end_reserving(self) -> None:
        self._stopping = True
        self._room.set()
        self._wake()

    async def run(self) -> None:
        """Work until the stop is done. Raises `WorkerError` when a loop dies, with the cause chained."""
        try:
            await self._queue.connect()
            self._plan = plan_for(self._backend, self.info, self._poll_interval)
            async with AsyncExitStack() as stack:
                lifespan = self._queue.lifespan
                state = None if lifespan is None else await stack.enter_async_context(lifespan(self._queue))
                processes = ProcessPool(self._queue, self._serializer, self._limits.max_rss)
                self._executor = Executor(self._queue, self._serializer, state, processes=processes)
                self._context = contextvars.copy_context()
                await self._work()
        finally:
            self.ended.set()

    async def _work(self) -> None:
        heartbeat = self._start_heartbeat()
        self._report.worker(EventName.WORKER_STARTED, self._plan.describe(self.info, self._slots))
        self.started.set()
        try:
            async with asyncio.TaskGroup() as group:
                loops = (self._settler.loop, self._give_back_loop, self._purge_loop, self._memory_loop)
                background = [group.create_task(loop(), name=loop.__name__) for loop in loops]
                await group.create_task(self._reserve_loop(), name="reserve")
                await self._drain()
                for task in background:
                    task.cancel()
        except asyncio.CancelledError:
            await self._hand_back()
            await self._sign_off()
            raise
        except ExceptionGroup as group_error:
            error = group_error.exceptions[0]
            logger.critical("worker %s cannot go on", self.info.id, exc_info=error)
            raise WorkerError(f"the worker cannot go on ({type(error).__name__}: {error})") from error
        finally:
            for run in self._held.values():
                run.stop("interrupted")
            await self._executor.close()
            if heartbeat is not None:
                await heartbeat.stop()
            self._report.worker(EventName.WORKER_STOPPED)
        await self._sign_off()

    async def _hand_back(self) -> None:
        """Give everything back at once: whoever cancels the worker, as a Ctrl+C does, does not wait for its tasks."""
        runs = [run for run in self._held.values() if not run.settling]
        for run in runs:
            run.stop("interrupted")
        try:
            async with asyncio.timeout(_AFTER_INTERRUPT):
                await asyncio.gather(*(run.task for run in runs if run.task and not run.in_thread))
                for run in [run for run in self._held.values() if not run.settling]:
                    self._release(run)
                await self._settler.flush()
        except Exception as error:  # noqa: BLE001 (their leases will end)
            logger.warning("cannot give back what was running (%s: %s)", type(error).__name__, error)

    async def _sign_off(self) -> None:
        """Have the store forget this worker: until its lease ends, it would look alive to operators."""
        if not self._plan.leases:
            return
        try:
            await self._backend.abandon_worker(self.info.id)
        except (BackendError, OSError) as error:
            logger.warning(
                "cannot sign off (%s: %s): seen as alive for %g s", type(error).__name__, error, self.info.lease
            )

    def _start_heartbeat(self) -> Heartbeat | None:
        if not self._plan.leases:
            return None
        runs = self._held.values
        heartbeat = Heartbeat(self._backend.clone(), self.info, lambda: list(runs()), self._heard, self._lapsed)
        heartbeat.start()
        return heartbeat

    async def _drain(self) -> None:
        """Give back what has not started, let the rest finish for the grace, interrupt what is left."""
        for run in [run for run in self._held.values() if run.task is None]:
            self._release(run)
        self._backlog.clear()
        if self._retiring:
            await self._until_calm(None)
        await self._until_calm(0.0 if self._hurry else self._grace)
        for run in [run for run in self._held.values() if not run.settling]:
            run.stop("interrupted")
            if run.in_thread:  # it cannot be interrupted: another worker may run the task beside this thread
                self._release(run)
        await self._until_calm(_AFTER_INTERRUPT)
        for run in [run for run in self._held.values() if not run.settling]:
            logger.error("task %s (%s) does not stop when cancelled; given back", run.reserved.id, run.reserved.name)
            self._release(run)
        await self._until_calm(self.info.lease)
        for run in list(self._held.values()):
            self._dropped(run, "the store did not answer before the worker stopped")

    async def _until_calm(self, seconds: float | None) -> None:
        if not self._held:
            return
        self._calm.clear()
        await self._until_woken(self._calm.wait(), seconds)

    async def _until_woken(self, waiting: Awaitable[object], seconds: float | None = None) -> None:
        """Wait for at most so many seconds, or until `_wake`."""
        try:
            async with asyncio.timeout(seconds) as self._pause:
                await waiting
        except TimeoutError:
            if self._pause is None or not self._pause.expired():
                raise
        finally:
            self._pause = None

    def _wake(self) -> None:
        if self._pause is not None and not self._pause.expired():
            self._pause.reschedule(asyncio.get_running_loop().time())

    # --- reserve ------------------------------------------------------------------------------------------------------

    async def _reserve_loop(self) -> None:
        failures = 0
        while not self._stopping:
            self._room.clear()
            wanted = await self._wanted_in_a_lull()
            if wanted < 1:
                await self._room.wait()
                continue
            asked = time.monotonic()
            try:
                reserved = await self._backend.reserve(self.info, wanted)
                if reserved:
                    self._most_ahead = adapted(self._most_ahead, self._waited, self._backend.prefetch)
                    self._take(reserved, asked)
                    for _ in range(_LET_START):  # and then reserve in the transaction that settles them
                        await asyncio.sleep(0)
                elif self._until_empty and await self._is_empty():
                    self.request_stop()
                elif not self._stopping:
                    await self._wait_for_work()
                failures = 0
            except (BackendError, OSError) as error:
                failures += 1
                pause = 0.2 + backoff(failures, 0.5, 30.0)
                logger.warning("cannot reserve (%s: %s); again in %.1f s", type(error).__name__, error, pause)
                if not self._stopping:
                    await self._until_woken(asyncio.sleep(pause))

    async def _wanted_in_a_lull(self) -> int:
        """Return how many to reserve; while tasks wait for their slot, a store in a thread is asked in a lull."""
        if self._backlog and self._wanted() > 0:
            await self._settler.lull()
        return 0 if self._stopping else self._wanted()

    def _wanted(self) -> int:
        """Return how many to reserve: free slots and, ahead of them, what short tasks will use up in no time."""
        ahead = prefetch_limit(self._slots, self._average, self._most_ahead)
        self._refill_at = ahead // 2
        if len(self._backlog) > self._refill_at or self._settler.owed >= MOST_OWED:
            return 0
        return min(self._slots - self._running + ahead - len(self._backlog), _RESERVE_BATCH)

    async def _wait_for_work(self) -> None:
        timeout = self._plan.poll_interval * random.uniform(0.9, 1.1)  # noqa: S311 (so that workers do not march in step)
        if self._until_empty:  # what other workers finish wakes nobody here
            timeout = min(timeout, _LOOK_IF_EMPTY_EVERY)
        await self._until_woken(self._backend.wait_for_work(self.info, timeout))
        await asyncio.sleep(0)  # a store that answers at once and then has nothing must not starve the loop

    async def _is_empty(self) -> bool:
        """Say whether nothing of this worker's queues is ready, running or in retry backoff."""
        if any(run not in self._not_due for run in self._held.values()):
            return False
        return not self._plan.inspect or not await self._backend.has_active_tasks(self.info)

    def _take(self, reserved: list[ReservedTask], asked: float) -> None:
        """Hold what was reserved. A reply so late that the store may have taken it back already is not started."""
        late = self._plan.leases and time.monotonic() - asked > self.info.lease / 3
        now = utcnow()
        for task in reserved:
            before = self._held.get(task.id)
            if before is not None and not before.settling:  # one given back may come before the answer that it was
                self._dropped(before, "its lease has ended and the task came again")
                before.stop("lost")
            run = Run(task, asked, self.info.lease if self._plan.leases else float("inf"))
            self._held[task.id] = run
            if late:
                self._release(run)
            elif task.eta is not None and task.eta > (task.reserved_at or now):  # by the store's clock, if it told
                early = (task.eta - (task.reserved_at or now)).total_seconds()
                self._again(run, Outcome.released(task.id, task.fence, early))
            else:
                self._backlog.append(run)
        self._start_next()

    async def _give_back_loop(self) -> None:
        """Give back what waits for a slot too long: another worker may have one free."""
        while True:
            await self._crowded.wait()
            while (run := next(filter(self._may_go_back, self._backlog), None)) is not None:
                early = run.reserved_at + GIVE_BACK_AFTER - time.monotonic()
                if early > 0:
                    await asyncio.sleep(early)
                    continue
                self._backlog.remove(run)
                self._release(run)
                # So long do tasks take at least. The worker took back at once what it had given back, for as long as
                # its slots were busy: an idle worker beside it had nothing of 200 short tasks within 60 s.
                self._average = max(self._average or 0.0, GIVE_BACK_AFTER)
            self._crowded.clear()

    def _may_go_back(self, run: Run) -> bool:
        """Say whether the store knows all of a task: one that is retried here starts over elsewhere."""
        return self._plan.defer or run.reserved.attempt < 2

    def _release(self, run: Run) -> None:
        self._settler.put(run, Outcome.released(run.reserved.id, run.reserved.fence))

    # --- start and finish ---------------------------------------------------------------------------------------------

    def _start_next(self) -> None:
        while self._backlog and self._running < self._slots:
            self._running += 1
            run = self._backlog.popleft()
            # A context of its own: what a task sets in context variables must not reach the next one.
            run.task = asyncio.get_running_loop().create_task(self._run(run), context=self._context.copy())
        if self._backlog:
            self._crowded.set()
        if len(self._backlog) <= self._refill_at:  # while the store answers the others keep the slots busy
            self._room.set()

    async def _run(self, run: Run) -> None:
        self._report.started(run)
        try:
            outcome = await self._executor.execute(run)
            if run.started is not None:
                self._average = smoothed(self._average, time.monotonic() - run.started)
                self._waited = run.started - run.reserved_at
            if self._held.get(run.reserved.id) is run and not run.settling:
                run.settling = True  # it has ended: nothing stops it any more, also while progress is handed over
                if outcome is not None and self._plan.leases and run.unpublished() is not None:
                    await self._publish_progress()
                self._finish(run, outcome)
        finally:
            self._running -= 1
            self._start_next()

    def _finish(self, run: Run, outcome: Outcome | None) -> None:
        if outcome is None:
            self._dropped(run, "its lease was lost")
        elif outcome.delay > 0 or outcome.kind == OutcomeKind.DEFERRED:
            self._again(run, outcome)
        else:
            self._settler.put(run, outcome)

    def _again(self, run: Run, outcome: Outcome) -> None:
        """Have a task run again after a delay: by the store or, if it cannot remember that, here, without a slot."""
        if self._plan.defer or self._stopping:
            self._settler.put(run, outcome)
            return
        if outcome.kind == OutcomeKind.DEFERRED:
            run.reserved.attempt = max(run.reserved.attempt, 1) + 1
            crashed = outcome.reason == CRASHED
            run.reserved.crashes += crashed
            run.reserved.solo_crashes += crashed
            self._report.settled(run, outcome)
        elif run.started is None:
            self._not_due.add(run)
        run.reserved.reason = outcome.reason
        run.begin_again()
        asyncio.get_running_loop().call_later(outcome.delay, self._due_here, run)

    def _due_here(self, run: Run) -> None:
        self._not_due.discard(run)
        if self._held.get(run.reserved.id) is run and not run.settling:
            self._backlog.append(run)
            self._start_next()

    async def _publish_progress(self) -> None:
        """Hand over the last progress before the task ends; all that is held is named, since the rest is given back."""
        runs = list(self._held.values())
        held, asked = held_of(runs), time.monotonic()
        try:
            answer = await self._backend.extend_leases(self.info, held)
        except Exception as error:  # noqa: BLE001 (the outcome matters more)
            logger.warning("cannot publish progress (%s: %s)", type(error).__name__, error)
        else:
            note_extended(runs, held, answer, asked, self.info)

    # --- what the store and the heartbeat say -------------------------------------------------------------------------

    def _settled(self, run: Run, outcome: Outcome) -> None:
        self._forget(run)
        self._report.settled(run, outcome)
        most = self._limits.max_tasks
        if most is not None and self.counts.total() - self.counts[OutcomeKind.RELEASED] >= most:
            self.retire(f"it has run {most} tasks")

    def _dropped(self, run: Run, why: str) -> None:
        self._forget(run)
        self._report.dropped(run, why)

    def _forget(self, run: Run) -> None:
        if self._held.get(run.reserved.id) is run:
            del self._held[run.reserved.id]
        self._room.set()  # the worker may owe few enough outcomes again
        if not self._held:
            self._calm.set()
            if self._until_empty and not self._stopping:
                self._wake()  # to look whether that was all

    def _heard(self, asked: list[Run], answer: Extended) -> None:
        """Stop what the store says, if it is still the run the store was asked about."""
        for run in asked:
            task_id = run.reserved.id
            if self._held.get(task_id) is run and not run.settling:
                if task_id in answer.lost:
                    self._stop_run(run, "lost")
                elif task_id in answer.cancelled:
                    self._stop_run(run, "cancelled")

    def _lapsed(self, runs: list[Run]) -> None:
        for run in runs:
            if self._held.get(run.reserved.id) is run and not run.settling and run.lease_until <= time.monotonic():
                self._stop_run(run, "lost")

    def _stop_run(self, run: Run, reason: str) -> None:
        """End a task's run from outside; one that has not begun yet is settled, or dropped, right here."""
        run.stop(reason)
        if run.task is None:
            if run in self._backlog:
                self._backlog.remove(run)
            self._finish(run, self._executor.stopped(run))

    # --- housekeeping -------------------------------------------------------------------------------------------------

    async def _purge_loop(self) -> None:
        """Delete finished tasks whose retention has passed, in batches small enough not to be noticed."""
        while self._plan.inspect:
            await asyncio.sleep(_PURGE_EVERY * random.uniform(0.5, 1.5))  # noqa: S311 (jitter)
            try:
                while await self._backend.purge(limit=_PURGE_BATCH) == _PURGE_BATCH:  # noqa: ASYNC110 (no event to await)
                    await asyncio.sleep(0.05)
            except BackendError as error:
                logger.warning("cannot purge finished tasks: %s", error)

    async def _memory_loop(self) -> None:
        """Retire when this process has grown too large."""
        while self._limits.max_rss is not None:
            size = rss()
            if size > self._limits.max_rss:
                self.retire(f"{size / 2**20:,.0f} MiB of memory are too much")
            await asyncio.sleep(_LOOK_AT_MEMORY_EVERY)
