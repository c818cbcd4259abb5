"""Stores that are broken on purpose: enqueue, reserve and settle. Each says which test of the suite must catch it."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sitq import MemoryBackend, Result, Task
from sitq.backends._memory_store import Row
from sitq.core import Accepted, NewTask, Outcome, OutcomeKind, ReservedTask, Status, WorkerInfo


class SelectThenUpdateReserve(MemoryBackend):
    """test_atomic_across_tasks"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        rows = [row for row in self._store.rows.values() if row.task.status == "queued"][:max_tasks]
        await asyncio.sleep(0)
        for row in rows:
            self._store.run(row, worker)
        return [self._handed(row) for row in rows]

    def _handed(self, row: Row) -> ReservedTask:
        return ReservedTask(**{f.name: getattr(row.task, f.name) for f in dataclasses.fields(Task)})


class TakesTooMany(MemoryBackend):
    """test_reserve_respects_max_tasks"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        return await super().reserve(worker, max_tasks + 1)


class FenceIsTheAttempt(MemoryBackend):
    """test_fences_strictly_grow"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        reserved = await super().reserve(worker, max_tasks)
        for task in reserved:
            task.fence = self._store.rows[task.id].task.fence = task.attempt
        return reserved


class LeaseNeverExpires(MemoryBackend):
    """test_an_expired_lease_is_taken_over"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        return await super().reserve(dataclasses.replace(worker, lease=1e8), max_tasks)


class CrashesAreNotCounted(MemoryBackend):
    """test_crashes_add_up"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        reserved = await super().reserve(worker, max_tasks)
        for task in reserved:
            task.crashes = self._store.rows[task.id].task.crashes = 0
        return reserved


class AllQueuesForAll(MemoryBackend):
    """test_a_worker_takes_from_its_queues_only"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        return await super().reserve(dataclasses.replace(worker, queues=None), max_tasks)


class LowerPriorityFirst(MemoryBackend):
    """test_higher_priority_comes_first"""

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        for new in tasks:
            if new.task.options is not None:
                priority = 9 - new.task.options.priority
                new.task.options = dataclasses.replace(new.task.options, priority=priority)
        return await super().enqueue_tasks(tasks)


class ForgetsEta(MemoryBackend):
    """test_not_reserved_before_its_eta"""

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        return await super().enqueue_tasks([NewTask(task=dataclasses.replace(new.task, eta=None)) for new in tasks])


class SwallowsCancellation(MemoryBackend):
    """test_waiting_can_be_cancelled"""

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        try:
            await super().wait_for_work(worker, timeout)
        except asyncio.CancelledError:
            return


class ReserveKeepsWhatNobodyHears(MemoryBackend):
    """test_cancelled_reserve_strands_nothing"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        reserved = await super().reserve(dataclasses.replace(worker, lease=1e8), max_tasks)
        await asyncio.sleep(0)
        return reserved


class PartOfABatchIsVisible(MemoryBackend):
    """test_a_batch_is_visible_at_once"""

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        accepted = []
        for new in tasks:
            accepted += await super().enqueue_tasks([new])
            await asyncio.sleep(0)
        return accepted


class EnqueueOverwrites(MemoryBackend):
    """test_enqueue_is_idempotent_by_id"""

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        for new in tasks:
            row = self._store.rows.get(new.task.id)
            if row is not None:
                row.task.payload = new.task.payload
        return await super().enqueue_tasks(tasks)


class EnqueueRevives(MemoryBackend):
    """test_enqueue_again_does_not_revive"""

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        for new in tasks:
            row = self._store.rows.get(new.task.id)
            if row is not None and row.task.status == "completed":
                self._store.queue(row)
        return await super().enqueue_tasks(tasks)


class UnfencedSettle(MemoryBackend):
    """test_stale_settle_is_refused[completed]"""

    def _settle(self, outcome: Outcome) -> bool:
        row = self._store.rows.get(outcome.task_id)
        return super()._settle(outcome if row is None else dataclasses.replace(outcome, fence=row.task.fence))


class SettleIsNotIdempotent(MemoryBackend):
    """test_settle_is_idempotent[completed]"""

    def _settle(self, outcome: Outcome) -> bool:
        row = self._store.rows.get(outcome.task_id)
        return row is not None and row.task.status == "running" and super()._settle(outcome)


class OneStaleOutcomeFailsItsBatch(MemoryBackend):
    """test_each_outcome_has_its_own_answer"""

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        answers = await super().settle(outcomes)
        return [all(answers)] * len(answers)


class ResultAfterStatus(MemoryBackend):
    """test_result_and_status_are_visible_together"""

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        answers = await super().settle([dataclasses.replace(outcome, result=None) for outcome in outcomes])
        await asyncio.sleep(0)
        for outcome in outcomes:
            if outcome.result is not None:
                await self._write_result(outcome.task_id, outcome.result)
        return answers


class DelayByTheWorkersClock(MemoryBackend):
    """test_delay_counts_by_the_stores_clock"""

    def _settle(self, outcome: Outcome) -> bool:
        row = self._store.rows[outcome.task_id]
        since = self._store.monotonic() - row.reserved_at
        return super()._settle(dataclasses.replace(outcome, delay=max(0.0, outcome.delay - since)))


class DelayIsForgotten(MemoryBackend):
    """test_not_handed_out_before_the_delay[deferred]"""

    def _settle(self, outcome: Outcome) -> bool:
        return super()._settle(dataclasses.replace(outcome, delay=0.0))


class ReleaseCostsAnAttempt(MemoryBackend):
    """test_released_restores_the_attempt"""

    def _settle(self, outcome: Outcome) -> bool:
        kind = OutcomeKind.DEFERRED if outcome.kind == OutcomeKind.RELEASED else outcome.kind
        return super()._settle(dataclasses.replace(outcome, kind=kind))


class RunsWhatWasToBeCancelled(MemoryBackend):
    """test_takeover_settles_it"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        for row in self._store.rows.values():
            row.task.cancel_requested = False
        return await super().reserve(worker, max_tasks)


class SentBackInSpiteOfTheRequest(MemoryBackend):
    """test_sent_back_becomes_cancelled[deferred]"""

    def _settle(self, outcome: Outcome) -> bool:
        row = self._store.rows[outcome.task_id]
        if outcome.kind == OutcomeKind.DEFERRED:
            row.task.cancel_requested = False
        return super()._settle(outcome)


class FirstResultStays(MemoryBackend):
    """test_results_are_overwritten"""

    async def _write_result(self, task_id: str, result: Result) -> None:
        if self._store.known(task_id).result is None:
            await super()._write_result(task_id, result)


class UniqueKeyIsFreedAtTheStart(MemoryBackend):
    """test_key_is_held_while_it_runs_and_waits"""

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        self._store.unique.clear()
        return await super().reserve(worker, max_tasks)


class UniqueForIsForgotten(MemoryBackend):
    """test_unique_for_holds_past_the_end"""

    def _settle(self, outcome: Outcome) -> bool:
        self._store.rows[outcome.task_id].unique_until = 0.0
        return super()._settle(outcome)


class UniqueIsCheckedThenStored(MemoryBackend):
    """test_one_of_many_at_once"""

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        unique = [new.task.options.unique for new in tasks if new.task.options and new.task.options.unique]
        held = [self._store.holder(key) for key in unique]
        await asyncio.sleep(0)
        if not any(held):
            self._store.unique.clear()
        return await super().enqueue_tasks(tasks)


class NoPayloadChecks(MemoryBackend):
    """test_values_come_back_as_they_were"""

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        await super().enqueue_task(task, function, tuple(map(str, args)), kwargs)


class EndsAsQueued(MemoryBackend):
    """test_settle_stores_status_and_result[failed]"""

    def _settle(self, outcome: Outcome) -> bool:
        answer = super()._settle(outcome)
        if outcome.kind == OutcomeKind.FAILED:
            self._store.rows[outcome.task_id].task.status = Status.COMPLETED
        return answer
