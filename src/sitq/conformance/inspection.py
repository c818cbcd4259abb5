"""INSPECT: look at tasks, queues and workers; run again and delete what has ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import LONG, Kit, requires
from sitq.core import Outcome, TaskFilter, TaskOptions, utcnow
from sitq.exceptions import TaskNotFoundError


@requires(Capability.INSPECT)
class InspectTests(Kit):
    """What operators see and do."""

    async def ids(self, backend: Backend, limit: int = 100, **fields: object) -> list[str]:
        """List the ids of tasks that match."""
        wanted = TaskFilter(**fields)  # type: ignore[arg-type]
        return [task.id for task in await backend.list_tasks(wanted, limit)]

    async def in_every_phase(self, backend: Backend) -> dict[str, str]:
        """Store a task in each phase that needs no time to pass; return their ids by phase."""
        made = {}
        for phase, status in (("completed", "completed"), ("failed", "failed"), ("ready", "queued")):
            made[phase] = await self.put_one(backend)
            await backend.update_task_status(made[phase], status)
        made["scheduled"] = await self.put_one(backend, eta=utcnow() + timedelta(seconds=LONG))
        made["running"] = await self.put_one(backend, options=TaskOptions(queue="a"))
        made["retrying"] = await self.put_one(backend, options=TaskOptions(queue="b"))
        for queue in ("a", "b"):
            task = await self.take_one(backend, self.worker(queues=(queue,)))
            if queue == "b":
                await backend.settle([Outcome.deferred(task.id, task.fence, LONG)])
        return made

    async def test_newest_first(self, backend: Backend) -> None:
        """Tasks are listed newest first, and at most `limit` of them."""
        ids = await self.put(backend, 5)
        assert await self.ids(backend) == ids[::-1]
        assert await self.ids(backend, limit=2) == ids[:2:-1]
        assert [task.id for task in await backend.list_tasks()] == ids[::-1]

    async def test_pages_cover_all_once(self, backend: Backend) -> None:
        """`after` continues where the last page ended."""
        ids = await self.put(backend, 7)
        seen: list[str] = []
        while page := await self.ids(backend, limit=3, after=seen[-1] if seen else None):
            seen += page
        assert seen == ids[::-1]

    async def test_no_page_follows_an_unknown_task(self, backend: Backend) -> None:
        """Who continues after a task that is not there hears of it, instead of missing tasks or seeing them again."""
        ids = await self.put(backend, 3)
        await backend.update_task_status(ids[1], "failed")
        await backend.purge(TaskFilter(phase="failed"))
        for after in (ids[1], "nobody"):
            with pytest.raises(TaskNotFoundError):
                await self.ids(backend, after=after)
            with pytest.raises(TaskNotFoundError):
                await backend.purge(TaskFilter(after=after))
        assert await self.ids(backend, after=ids[2]) == [ids[0]]

    async def test_lists_come_without_payloads(self, backend: Backend) -> None:
        """A list carries no calls, but names, options and times."""
        await self.put(backend, options=TaskOptions(queue="mail", priority=4))
        (task,) = await backend.list_tasks()
        assert task.payload is None
        assert task.options is not None
        assert (task.name, task.options.queue, task.options.priority) == ("sitq.conformance.calls:add", "mail", 4)
        assert task.created_at.utcoffset() == timedelta(0)

    @requires(Capability.QUEUES, Capability.DEFER)
    @pytest.mark.parametrize("phase", ["scheduled", "ready", "running", "retrying", "completed", "failed"])
    async def test_filter_by_phase(self, backend: Backend, phase: str) -> None:
        """`phase` lists the tasks in it, and no others."""
        made = await self.in_every_phase(backend)
        assert await self.ids(backend, phase=phase) == [made[phase]]

    @requires(Capability.QUEUES, Capability.DEFER)
    async def test_some_phases_are_active(self, backend: Backend) -> None:
        """`has_active_tasks` is true for as long as a queue has a task that is ready, running or retrying."""
        made = await self.in_every_phase(backend)
        for queues in (("a",), ("b",), ("default",), ("nobody", "b"), None):
            assert await backend.has_active_tasks(self.worker(queues=queues))
        assert not await backend.has_active_tasks(self.worker(queues=("nobody",)))
        for phase, queue in (("running", "a"), ("retrying", "b"), ("ready", "default")):
            await backend.update_task_status(made[phase], "failed")
            assert not await backend.has_active_tasks(self.worker(queues=(queue,)))
        assert await self.ids(backend, phase="scheduled") == [made["scheduled"]]
        assert not await backend.has_active_tasks(self.worker())

    @requires(Capability.QUEUES, Capability.DEFER, Capability.PAUSE)
    async def test_paused_queues_are_not_active(self, backend: Backend) -> None:
        """`has_active_tasks` leaves paused queues out, whatever their tasks do."""
        await self.in_every_phase(backend)
        for queue in ("a", "b", "default"):
            assert await backend.has_active_tasks(self.worker())
            await backend.pause_queue(queue, paused=True)
        assert not await backend.has_active_tasks(self.worker())

    @requires(Capability.CANCEL)
    async def test_filter_by_reason_of_failure(self, backend: Backend) -> None:
        """Cancelled tasks have a phase of their own."""
        cancelled, failed = await self.put(backend, 2)
        await backend.cancel_tasks([cancelled])
        await backend.update_task_status(failed, "failed")
        assert await self.ids(backend, phase="cancelled") == [cancelled]
        assert await self.ids(backend, phase="failed") == [failed]

    @requires(Capability.LEASES)
    async def test_a_lost_lease_reads_as_stalled(self, backend: Backend) -> None:
        """A running task whose lease has ended is `stalled` until somebody takes it over."""
        task_id, span = await self.put_one(backend), self.span(backend)
        await self.take_one(backend, self.worker(span))
        await self.let_pass(backend, span)

        async def stalled() -> bool:
            return await self.ids(backend, phase="stalled") == [task_id]

        await self.eventually(stalled)
        assert await self.ids(backend, phase="running") == []

    async def test_filters_are_joined(self, backend: Backend) -> None:
        """Queue, name, worker and time of creation narrow a list; all that are given must fit."""
        old = await self.put_one(backend, created_at=utcnow() - timedelta(days=2))
        mail = await self.put_one(backend, options=TaskOptions(queue="mail"))
        failing = (await backend.enqueue_tasks([self.new(backend, "x", function=print)]))[0].id
        day_ago = utcnow() - timedelta(days=1)
        assert await self.ids(backend, queue="mail") == [mail]
        assert await self.ids(backend, name="builtins:print") == [failing]
        assert await self.ids(backend, before=day_ago) == [old]
        assert await self.ids(backend, since=day_ago) == [failing, mail]
        assert await self.ids(backend, queue="mail", before=day_ago) == []
        worker = self.worker()
        task = await self.take_one(backend, worker)
        assert await self.ids(backend, worker_id=worker.id) == [task.id]
        assert await self.ids(backend, worker_id="nobody") == []

    @requires(Capability.QUEUES, Capability.DEFER)
    async def test_count_by_queue_and_phase(self, backend: Backend) -> None:
        """Each queue's tasks are counted by phase."""
        await self.in_every_phase(backend)
        await self.put_one(backend)
        counts = {counts.queue: counts for counts in await backend.count_tasks()}
        phases = {queue: {str(k): v for k, v in c.phases.items() if v} for queue, c in counts.items()}
        assert phases == {
            "default": {"completed": 1, "failed": 1, "ready": 2, "scheduled": 1},
            "a": {"running": 1},
            "b": {"retrying": 1},
        }
        assert not any(c.paused for c in counts.values())

    async def test_oldest_ready(self, backend: Backend) -> None:
        """A count says since when the oldest ready task is due; None where none is ready."""
        assert await backend.count_tasks() == []
        due = utcnow() - timedelta(hours=1)
        await self.put_one(backend, created_at=due)
        await self.put_one(backend)
        (counts,) = await backend.count_tasks()
        assert counts.oldest_ready is not None
        assert abs(counts.oldest_ready - due) < timedelta(milliseconds=1)
        await self.take(backend, count=2)
        assert (await backend.count_tasks())[0].oldest_ready is None

    @requires(Capability.LEASES)
    async def test_workers_are_listed(self, backend: Backend) -> None:
        """A worker that reserves or extends is listed, until it has not been heard of for its lease."""
        assert await backend.list_workers() == []
        queues, span = ("a", "b"), self.span(backend)
        lasting, fading = self.worker(LONG * 9, queues), self.worker(max(span, 1.0))
        await backend.reserve(lasting, 1)
        await backend.extend_leases(fading, [])
        listed = {worker.id: worker for worker in await backend.list_workers()}
        assert set(listed) == {lasting.id, fading.id}
        seen = listed[lasting.id]
        assert (seen.queues, seen.lease, seen.host, seen.pid) == (queues, lasting.lease, lasting.host, lasting.pid)
        assert seen.seen_at is not None
        assert seen.seen_at.utcoffset() == timedelta(0)
        await self.let_pass(backend, fading.lease)

        async def faded() -> bool:
            return [worker.id for worker in await backend.list_workers()] == [lasting.id]

        await self.eventually(faded)
        await backend.abandon_worker(lasting.id)
        assert await backend.list_workers() == []

    @pytest.mark.parametrize("status", ["completed", "failed"])
    async def test_requeue_runs_again(self, backend: Backend, status: str) -> None:
        """A finished task is queued again with attempts, crashes and result reset; others are refused."""
        ended, running, queued = await self.put(backend, 3)
        first = await self.take_one(backend)
        await backend.store_result(first.id, self.success(backend, first.id))
        await backend.update_task_status(first.id, status)
        await self.take_one(backend)
        assert await backend.requeue_tasks([queued, ended, running, "nobody"]) == [False, True, False, False]
        assert await backend.get_result(ended) is None
        by_id = {task.id: task for task in await self.take(backend, count=5)}
        assert set(by_id) == {ended, queued}
        assert (by_id[ended].attempt, by_id[ended].crashes) == (1, 0)
        assert (by_id[ended].fence or 0) > (first.fence or 0)

    async def test_purge_deletes_what_has_ended(self, backend: Backend) -> None:
        """With a filter, finished tasks that match are deleted whatever their retention; live ones never."""
        done, failed, running, queued = await self.put(backend, 4)
        await backend.update_task_status(done, "completed")
        await backend.update_task_status(failed, "failed")
        await backend.update_task_status(running, "running")
        assert await backend.purge(TaskFilter(phase="completed")) == 1
        assert await backend.get_task(done) is None
        assert await backend.get_result(done) is None
        assert await backend.purge(TaskFilter()) == 1
        assert await backend.purge(TaskFilter()) == 0
        assert {task.id for task in await backend.list_tasks()} == {running, queued}

    async def test_purge_respects_its_limit(self, backend: Backend) -> None:
        """At most `limit` tasks go at once."""
        for task_id in await self.put(backend, 5):
            await backend.update_task_status(task_id, "failed")
        assert [await backend.purge(TaskFilter(), limit=2) for _ in range(4)] == [2, 2, 1, 0]

    async def test_retention(self, backend: Backend) -> None:
        """Without a filter a finished task goes when its own retention has passed, and not before."""
        span = self.span(backend)
        for retention in (span, LONG * 9):
            await self.put_one(backend, options=TaskOptions(retention=retention))
        short, long = await self.take(backend, count=2)
        results = [(task, self.success(backend, task.id)) for task in (short, long)]
        await backend.settle([Outcome.completed(task.id, task.fence, result) for task, result in results])
        await self.let_pass(backend, span)

        async def purged() -> bool:
            await backend.purge()
            return await backend.get_task(short.id) is None

        await self.eventually(purged)
        assert await backend.get_task(long.id) is not None

    async def test_default_retention_keeps_what_just_ended(self, backend: Backend) -> None:
        """A task that has just ended is not purged by default."""
        for task_id, status in zip(await self.put(backend, 2), ("completed", "failed"), strict=True):
            await backend.update_task_status(task_id, status)
        assert await backend.purge() == 0

    @requires("clock")
    async def test_default_retentions(self, backend: Backend) -> None:
        """Without a retention of its own a completed task is kept for one day, a failed one for seven."""
        done, failed = await self.put(backend, 2)
        for task in await self.take(backend, count=2):
            result = self.success(backend, task.id) if task.id == done else self.failure(task.id)
            make = Outcome.completed if task.id == done else Outcome.failed
            await backend.settle([make(task.id, task.fence, result)])
        for days, left in ((0.99, {done, failed}), (0.02, {failed}), (5.98, {failed}), (0.02, set())):
            await self.let_pass(backend, days * 86_400)
            await backend.purge()
            assert {task.id for task in await backend.list_tasks()} == left, f"after {days} days more"
