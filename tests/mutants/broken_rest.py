"""Stores that are broken on purpose: by hand, leases, waiting, operators. Each says which test must catch it."""

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sitq import Cancelled, MemoryBackend, Result, Task, TaskNotFoundError
from sitq.backends.base import check_move
from sitq.core import Accepted, Extended, Held, NewTask, QueueCounts, TaskFilter, WorkerInfo
from sitq.exceptions import InvalidTransitionError, ValidationError


class NaiveTimes(MemoryBackend):
    """test_times_are_aware_utc"""

    async def get_task(self, task_id: str) -> Task | None:
        task = await super().get_task(task_id)
        return None if task is None else dataclasses.replace(task, created_at=task.created_at.replace(tzinfo=None))


class TakesAnyWord(MemoryBackend):
    """test_bad_status_is_refused[done]"""

    async def update_task_status(self, task_id: str, status: str) -> None:
        try:
            await super().update_task_status(task_id, status)
        except ValidationError:
            return


class TakesAnyMove(MemoryBackend):
    """test_forbidden_moves_are_refused[completed-failed]"""

    async def update_task_status(self, task_id: str, status: str) -> None:
        try:
            await super().update_task_status(task_id, status)
        except InvalidTransitionError:
            self._store.rows[task_id].task.status = status


class UnknownIdsPass(MemoryBackend):
    """test_writes_to_unknown_ids_fail"""

    async def _write_result(self, task_id: str, result: Result) -> None:
        try:
            await super()._write_result(task_id, result)
        except TaskNotFoundError:
            return


class OperatorDoesNotFence(MemoryBackend):
    """test_operators_write_wins_over_the_worker[completed]"""

    async def update_task_status(self, task_id: str, status: str) -> None:
        row = self._store.known(task_id)
        fence = row.task.fence
        await super().update_task_status(task_id, status)
        row.task.fence = fence


class QueuedAgainIsNotReady(MemoryBackend):
    """test_queued_again_is_reservable_again[failed]"""

    async def update_task_status(self, task_id: str, status: str) -> None:
        row = self._store.known(task_id)
        if check_move(task_id, row.task.status, status) == "queued":
            row.task.status = status
        else:
            await super().update_task_status(task_id, status)


class HeartbeatTrustsTheId(MemoryBackend):
    """test_stale_heartbeat_is_told"""

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        rows = self._store.rows
        held = [dataclasses.replace(h, fence=rows[h.id].task.fence) if h.id in rows else h for h in held]
        return await super().extend_leases(worker, held)


class HeartbeatRenewsNothing(MemoryBackend):
    """test_extending_keeps_the_lease"""

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        return Extended()


class UnheardStaysReserved(MemoryBackend):
    """test_unheard_reservations_are_given_back"""

    def _give_back_unheard(self, worker: WorkerInfo, named: set[str]) -> None:
        return


class GivesBackWhatIsOnItsWay(MemoryBackend):
    """test_fresh_reservations_are_not_given_back"""

    def _give_back_unheard(self, worker: WorkerInfo, named: set[str]) -> None:
        super()._give_back_unheard(dataclasses.replace(worker, lease=-1.0), named)


class AbandonWaitsForTheLease(MemoryBackend):
    """test_abandoned_worker_loses_all_at_once"""

    async def abandon_worker(self, worker_id: str) -> int:
        return len(self._store.held.get(worker_id, ()))


class LosesWakeUps(MemoryBackend):
    """test_by_enqueue"""

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        await asyncio.sleep(timeout)


class LooksBeforeItListens(MemoryBackend):
    """test_no_wake_up_is_lost"""

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        if not self._has_work(worker):
            await asyncio.sleep(0)
            event = asyncio.Event()
            waiter = (asyncio.get_running_loop(), event)
            self._store.waiters.add(waiter)
            try:
                async with asyncio.timeout(timeout):
                    await event.wait()
            except TimeoutError:
                return
            finally:
                self._store.waiters.discard(waiter)


class Spins(MemoryBackend):
    """test_waiting_ends_with_its_timeout"""

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        await asyncio.sleep(0)


class ResumeWakesNobody(MemoryBackend):
    """test_by_resume"""

    async def pause_queue(self, queue: str, paused: bool) -> None:
        (self._store.paused.add if paused else self._store.paused.discard)(queue)


class PausedQueuesGoOn(MemoryBackend):
    """test_a_paused_queue_hands_out_nothing"""

    async def pause_queue(self, queue: str, paused: bool) -> None:
        return


class CancelsOnlyTheQueued(MemoryBackend):
    """test_running_task_is_asked"""

    def _cancel(self, task_id: str) -> Cancelled:
        answer = super()._cancel(task_id)
        if answer == Cancelled.REQUESTED:
            self._store.rows[task_id].task.cancel_requested = False
        return answer


class PurgesTheLiving(MemoryBackend):
    """test_purge_deletes_what_has_ended"""

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        for row in self._store.rows.values():
            if row.task.status == "running":
                row.task.status = "failed"
        return await super().purge(wanted, limit)


class PurgesTooEarly(MemoryBackend):
    """test_default_retentions"""

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        for row in self._store.rows.values():
            row.purge_at = min(row.purge_at, self._store.now() + 86_400 * 5)
        self._store.clock_offset += 86_400 * 3
        try:
            return await super().purge(wanted, limit)
        finally:
            self._store.clock_offset -= 86_400 * 3


class RequeueKeepsTheAttempts(MemoryBackend):
    """test_requeue_runs_again[completed]"""

    async def requeue_tasks(self, task_ids: Sequence[str]) -> list[bool]:
        attempts = {task_id: row.task.attempt for task_id, row in self._store.rows.items()}
        answers = await super().requeue_tasks(task_ids)
        for task_id, attempt in attempts.items():
            self._store.rows[task_id].task.attempt = attempt
        return answers


class PagesOverlap(MemoryBackend):
    """test_pages_cover_all_once"""

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        page = await super().list_tasks(wanted, limit + 1)
        return page[1:] if wanted and wanted.after else page[:limit]


class CountsAllQueuesButOne(MemoryBackend):
    """test_oldest_ready"""

    async def count_tasks(self) -> list[QueueCounts]:
        return (await super().count_tasks())[1:]


class ExpiresByTheClockOfNobody(MemoryBackend):
    """test_it_is_not_handed_out"""

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        for new in tasks:
            options = new.task.options
            if options is not None and options.expires_at is not None:
                later = options.expires_at + timedelta(hours=1)
                new.task.options = dataclasses.replace(options, expires_at=later)
        return await super().enqueue_tasks(tasks)


class IgnoresTheTransaction(MemoryBackend):
    """test_gone_at_rollback"""

    async def enqueue_in(self, connection: Any, tasks: Sequence[NewTask]) -> list[Accepted]:
        return await self.enqueue_tasks(tasks)


class RunsAgainAtTheOldTime(MemoryBackend):
    """test_run_again_it_is_due_now"""

    async def update_task_status(self, task_id: str, status: str) -> None:
        due = self._store.rows[task_id].due
        await super().update_task_status(task_id, status)
        self._store.rows[task_id].due = due
        self._store.arm(self._store.rows[task_id])
