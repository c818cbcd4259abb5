"""The store against a model of it: one state machine that tries whatever a queue, workers and operators may do.

The model keeps in plain fields what the contract promises. Steps come in any order, with old fences and new ones; after
each, every task must read as the model says. Time passes through the author's clock hook, where there is one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import Kit
from sitq.core import Cancelled, Held, Outcome, ReservedTask, TaskFilter, TaskOptions, utcnow

T = TypeVar("T")

_UNIT = 10_000.0  # seconds; far above what a step takes, so that a slow machine changes nothing
_LEASE = 4  # units
_STEPS = 50
_WORKERS = 3
_KINDS = ("completed", "failed", "deferred", "released")

STEPS = int(os.environ.get("SITQ_MODEL_STEPS", "2000"))
"""How many steps the model takes on each store; `scripts/slow model` takes 100,000."""


@dataclass
class _Expected:
    """What the model knows of one task. Times are in units since the start."""

    priority: int
    status: str = "queued"
    due: int = 0
    attempt: int = 0
    crashes: int = 0
    fence: int = 0
    worker: int | None = None
    lease_until: int = 0
    reserved_at: int = 0
    cancel_requested: bool = False
    reason: str | None = None


@dataclass
class _Reservation:
    """What a worker was handed, for it to come back with, perhaps much too late."""

    task_id: str
    fence: int | None
    worker: int


@dataclass
class _World:
    """The store under test, and how to reach it from plain functions."""

    kit: Kit
    backend: Backend
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    passed: int = 0  # units the clock was moved by, in all examples

    def has(self, capability: Capability) -> bool:
        return capability in self.backend.capabilities


class StoreModel(RuleBasedStateMachine):
    """Enqueue, reserve, extend, settle, cancel, requeue, crash, purge, and time."""

    world: ClassVar[_World]
    ids: Bundle[str] = Bundle("ids")
    reservations: Bundle[_Reservation] = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        world = self.world
        self.now = 0
        self.tasks: dict[str, _Expected] = {}
        self.gone: set[str] = set()
        self.has, self.run, self.backend = world.has, world.run, world.backend
        self.leases = self.has(Capability.LEASES)
        self.workers = [world.kit.worker(_LEASE * _UNIT) for _ in range(_WORKERS)]

    def teardown(self) -> None:
        """Leave nothing to reserve for the next example."""
        for task_id, task in self.tasks.items():
            if task.status in ("queued", "running"):
                stored = self.run(self.backend.get_task(task_id))
                if stored is not None and stored.status in ("queued", "running"):
                    self.run(self.backend.update_task_status(task_id, "failed"))
        if self.has(Capability.INSPECT):
            while self.run(self.backend.purge(TaskFilter())):
                pass

    # --- producers ----------------------------------------------------------------------------------------------------

    @rule(target=ids, priority=st.integers(0, 2))
    def enqueue(self, priority: int) -> str:
        priority = priority if self.has(Capability.QUEUES) else 0
        new = self.world.kit.new(self.backend, options=TaskOptions(priority=priority))
        (answer,) = self.run(self.backend.enqueue_tasks([new]))
        assert (answer.id, answer.created) == (new.task.id, True)
        self.tasks[answer.id] = _Expected(priority=priority)
        return new.task.id

    @precondition(lambda self: self.has(Capability.ATOMIC))
    @rule(task_id=ids)
    def enqueue_again(self, task_id: str) -> None:
        if task_id not in self.gone:
            (answer,) = self.run(self.backend.enqueue_tasks([self.world.kit.new(self.backend, task_id=task_id)]))
            assert (answer.id, answer.created) == (task_id, False)

    # --- workers ------------------------------------------------------------------------------------------------------

    @rule(target=reservations, who=st.integers(0, _WORKERS - 1), count=st.integers(1, 4))
    def reserve(self, who: int, count: int) -> Any:
        ready = {task_id: task for task_id, task in self.tasks.items() if self._is_ready(task)}
        doomed = {task_id for task_id, task in self.tasks.items() if self._is_lost(task) and task.cancel_requested}
        reserved: list[ReservedTask] = self.run(self.backend.reserve(self.workers[who], count))
        assert len(reserved) == min(count, len(ready)), f"{len(ready)} are ready, and reserve({count}) gave {reserved}"
        assert {task.id for task in reserved} <= set(ready)
        if self.has(Capability.QUEUES):
            priorities = [ready[task.id].priority for task in reserved]
            left = [task.priority for task_id, task in ready.items() if task_id not in {t.id for t in reserved}]
            assert priorities == sorted(priorities, reverse=True)
            assert not left or not priorities or priorities[-1] >= max(left)
        for task in reserved:
            self._was_reserved(task, who)
        for task_id in doomed:  # how many of them a reserve meets on its way is its own affair
            if self.run(self.backend.get_task(task_id)).status == "failed":
                self._end(task_id, "failed", "cancelled")
        return multiple(*(_Reservation(task.id, task.fence, who) for task in reserved))

    def _is_lost(self, task: _Expected) -> bool:
        return self.leases and task.status == "running" and task.lease_until <= self.now

    def _is_ready(self, task: _Expected) -> bool:
        queued = task.status == "queued" and task.due <= self.now
        return queued or (self._is_lost(task) and not task.cancel_requested)

    def _was_reserved(self, reserved: ReservedTask, who: int) -> None:
        task = self.tasks[reserved.id]
        task.crashes += task.status == "running"
        task.attempt += 1
        if self.leases:
            assert (reserved.attempt, reserved.crashes) == (task.attempt, task.crashes)
            assert reserved.fence is not None
            assert reserved.fence > task.fence, "a fence that does not grow"
            task.fence = reserved.fence
        task.status, task.worker, task.reserved_at = "running", who, self.now
        task.lease_until = self.now + _LEASE

    @rule(
        reservation=reservations,
        kind=st.sampled_from(["completed", "failed", "deferred", "released"]),
        units=st.integers(0, 3),
    )
    def settle(self, reservation: _Reservation, kind: str, units: int) -> None:
        task = self.tasks.get(reservation.task_id)
        if not self.leases and (task is None or task.status != "running" or task.worker != reservation.worker):
            return  # without fences the six cannot tell; a correct worker settles what it holds, once
        units = units if self.has(Capability.DEFER) else 0
        outcome = self._outcome(reservation, kind, units)
        answer = self.run(self.backend.settle([outcome]))
        holds = task is not None and (not self.leases or task.fence == reservation.fence)
        assert answer == [holds], f"settle({kind}) answered {answer}, with the fence {reservation.fence} of {task}"
        if task is None or not holds or task.status != "running":
            return
        if kind in ("completed", "failed"):
            self._end(reservation.task_id, kind, "error" if kind == "failed" else None)
        elif task.cancel_requested:
            self._end(reservation.task_id, "failed", "cancelled")
        else:
            task.attempt -= kind == "released"
            self._queue(task, units)

    def _outcome(self, reservation: _Reservation, kind: str, units: int) -> Outcome:
        task_id, fence, kit = reservation.task_id, reservation.fence, self.world.kit
        if kind == "completed":
            return Outcome.completed(task_id, fence, kit.success(self.backend, task_id))
        if kind == "failed":
            return Outcome.failed(task_id, fence, kit.failure(task_id))
        make = Outcome.deferred if kind == "deferred" else Outcome.released
        return make(task_id, fence, units * _UNIT)

    @precondition(lambda self: self.leases)
    @rule(reservation=reservations)
    def extend(self, reservation: _Reservation) -> None:
        """Extend all that the worker holds, and one more thing it believes to hold."""
        who = reservation.worker
        mine = {task_id: t for task_id, t in self.tasks.items() if t.status == "running" and t.worker == who}
        held = [Held(id=task_id, fence=task.fence) for task_id, task in mine.items()]
        held.append(Held(id=reservation.task_id, fence=reservation.fence))
        answer = self.run(self.backend.extend_leases(self.workers[who], held))
        task = self.tasks.get(reservation.task_id)
        good = task is not None and task.status == "running" and task.fence == reservation.fence
        assert answer.lost - set(mine) == (set() if good else {reservation.task_id} - set(mine))
        assert answer.cancelled == {task_id for task_id, t in mine.items() if t.cancel_requested}
        for task_id, task in mine.items():
            task.lease_until = self._renewed_until(task_id)

    def _renewed_until(self, task_id: str) -> int:
        """A store may save the write while two thirds of a lease are left: read how long the lease is now."""
        if not self.world.kit.claims(self.backend, "clock"):
            return self.now + _LEASE
        expires_at: datetime = self.run(self.backend.get_task(task_id)).lease_expires_at
        left = (expires_at - utcnow()).total_seconds() / _UNIT - self.world.passed
        assert _LEASE * 2 / 3 - 0.1 <= left <= _LEASE + 0.1, f"a lease of {_LEASE} was extended to {left}"
        return self.now + round(left)

    @precondition(lambda self: self.leases)
    @rule(who=st.integers(0, _WORKERS - 1))
    def extend_nothing(self, who: int) -> None:
        """A worker that has heard of none of its tasks: what is fresh stays, what lapses is given back."""
        answer = self.run(self.backend.extend_leases(self.workers[who], []))
        assert not answer.lost
        for task_id, task in self.tasks.items():
            if task.status == "running" and task.worker == who:
                old = (self.now - task.reserved_at) * 2 >= _LEASE
                lapsing = (task.lease_until - self.now) * 2 <= _LEASE
                given_back = self.run(self.backend.get_task(task_id)).status != "running"
                assert given_back or not (old and lapsing), "an unheard reservation was not given back"
                assert not given_back or old or lapsing, "a fresh reservation was given back"
                if not given_back:
                    continue
                if task.cancel_requested:
                    self._end(task_id, "failed", "cancelled")
                else:
                    task.attempt -= 1
                    self._queue(task, 0)

    @precondition(lambda self: self.leases)
    @rule(who=st.integers(0, _WORKERS - 1))
    def crash(self, who: int) -> None:
        """A worker dies, and somebody who waited for its process says so."""
        mine = [task for task in self.tasks.values() if task.status == "running" and task.worker == who]
        assert self.run(self.backend.abandon_worker(self.workers[who].id)) == len(mine)
        for task in mine:
            task.lease_until = self.now

    # --- operators ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.has(Capability.CANCEL))
    @rule(task_id=ids)
    def cancel(self, task_id: str) -> None:
        task = self.tasks.get(task_id)
        status = "unknown" if task is None else task.status
        wanted = {"queued": Cancelled.CANCELLED, "running": Cancelled.REQUESTED, "unknown": Cancelled.UNKNOWN}
        assert self.run(self.backend.cancel_tasks([task_id])) == [wanted.get(status, Cancelled.FINISHED)]
        if task is not None and status == "running":
            task.cancel_requested = True
        elif status == "queued":
            self._end(task_id, "failed", "cancelled")

    @precondition(lambda self: self.has(Capability.INSPECT))
    @rule(task_id=ids)
    def requeue(self, task_id: str) -> None:
        task = self.tasks.get(task_id)
        ended = task is not None and task.status in ("completed", "failed")
        assert self.run(self.backend.requeue_tasks([task_id])) == [ended]
        if task is not None and ended:
            self._run_again(task_id, task)

    @rule(task_id=ids, status=st.sampled_from(["queued", "completed", "failed"]))
    def operate(self, task_id: str, status: str) -> None:
        """Set a status by hand, where that is allowed."""
        task = self.tasks.get(task_id)
        live = task is not None and task.status in ("queued", "running")
        if task is None or task.status == status or not (live or status == "queued"):
            return
        self.run(self.backend.update_task_status(task_id, status))
        if status != "queued":
            self._end(task_id, status, None)
        elif live:
            self._queue(task, 0)
        else:
            self._run_again(task_id, task)
        self._read_fence(task_id, task)

    @precondition(lambda self: self.has(Capability.INSPECT))
    @rule(task_id=consumes(ids))
    def purge(self, task_id: str) -> None:
        ended = {t for t, task in self.tasks.items() if task.status in ("completed", "failed")}
        assert self.run(self.backend.purge(TaskFilter(), 500)) == len(ended)
        for gone in ended:
            del self.tasks[gone]
        self.gone |= ended

    @precondition(lambda self: self.world.kit.claims(self.backend, "clock"))
    @rule(units=st.integers(1, 5))
    def time_passes(self, units: int) -> None:
        self.world.kit.advance(self.backend, units * _UNIT)
        self.now += units
        self.world.passed += units

    # --- moves of the model -------------------------------------------------------------------------------------------

    def _end(self, task_id: str, status: str, reason: str | None) -> None:
        task = self.tasks[task_id]
        task.status, task.reason, task.worker = status, reason, None

    def _queue(self, task: _Expected, units: int) -> None:
        task.status, task.worker, task.cancel_requested, task.reason = "queued", None, False, None
        task.due = self.now + units if units else min(task.due, self.now)

    def _run_again(self, task_id: str, task: _Expected) -> None:
        self._queue(task, 0)
        task.attempt = task.crashes = 0
        self._read_fence(task_id, task)

    def _read_fence(self, task_id: str, task: _Expected) -> None:
        """An operator's write raises the fence, nobody says by how much."""
        if self.leases:
            fence = self.run(self.backend.get_task(task_id)).fence
            assert fence is not None
            if task.fence:
                assert fence >= task.fence
            task.fence = fence

    @invariant()
    def every_task_reads_as_expected(self) -> None:
        for task_id, task in self.tasks.items():
            stored = self.run(self.backend.get_task(task_id))
            assert stored is not None, "a task is gone"
            assert stored.status == task.status
            if self.leases:
                assert (stored.attempt, stored.crashes) == (task.attempt, task.crashes)
                if task.status in ("queued", "running"):
                    assert stored.cancel_requested == task.cancel_requested
                worker = None if task.worker is None else self.workers[task.worker].id
                assert stored.worker_id == worker
                if task.status in ("completed", "failed"):
                    assert stored.reason == task.reason
        for task_id in self.gone:
            assert self.run(self.backend.get_task(task_id)) is None


def run_model(kit: Kit, make_backend: Callable[[], Backend], steps: int = STEPS) -> None:
    """Take so many steps on a store of its own. Raises `AssertionError` with the shortest story that went wrong."""
    with asyncio.Runner() as runner:
        backend = make_backend()
        runner.run(backend.connect())
        try:
            world = _World(kit, backend, runner.run)
            machine = type("StoreModelOf" + type(backend).__name__, (StoreModel,), {"world": world})
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=max(1, steps // _STEPS),
                    stateful_step_count=_STEPS,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(backend.close())


class ModelTests(Kit):
    """Thousands of steps nobody thought of."""

    async def test_the_store_does_what_the_model_says(
        self, backend: Backend, make_backend: Callable[[], Backend]
    ) -> None:
        """Whatever producers, workers and operators do in whatever order, every task reads as the contract says."""
        await asyncio.to_thread(run_model, self, make_backend, STEPS // self.model_divisor)
