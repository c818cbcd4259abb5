"""The contract between sitq and a store: six abstract methods, what is composed from them, what they cannot express.

Everything a queue and a worker ask of a store goes through `Backend`. A subclass that writes the six is a whole
backend: slower than it could be, never wrong. Each `Capability` it claims beyond that names methods to override;
`sitq.conformance` proves the claim. `Backend` keeps no state and has no `__init__` to call.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, NoReturn, Self

from sitq.core import (
    OPERATOR_MOVES,
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
    ReservedTask,
    Result,
    Status,
    Task,
    TaskFilter,
    WorkerInfo,
)
from sitq.exceptions import InvalidTransitionError, UnsupportedError, ValidationError

if TYPE_CHECKING:
    from sitq.serialization import Serializer

__all__ = ["REQUIRED_METHODS", "Backend", "Capability", "check_move"]


class Capability(Flag):
    """What a store can do beyond the six methods. Claiming one promises to override its `REQUIRED_METHODS`."""

    QUEUES = auto()
    """Named queues and priorities are honoured."""
    DEFER = auto()
    """"Again after a delay" survives the worker."""
    LEASES = auto()
    """Reservations expire, are taken over, and are fenced."""
    ATOMIC = auto()
    """`enqueue_tasks` is all or nothing; result and status become visible together."""
    UNIQUE = auto()
    """One live task per unique key; `unique_for` holds the key past the task's end."""
    CANCEL = auto()
    """A queued task is cancelled at once, a running one is asked to stop."""
    INSPECT = auto()
    """Tasks, queues and workers can be listed, counted, requeued and purged."""
    PAUSE = auto()
    """Queues can be paused."""
    TRANSACTION = auto()
    """A task can be enqueued inside the caller's own transaction."""


REQUIRED_METHODS: Mapping[Capability, tuple[str, ...]] = {
    Capability.QUEUES: ("reserve",),
    Capability.DEFER: ("settle",),
    Capability.LEASES: ("reserve", "settle", "extend_leases", "abandon_worker", "clone"),
    Capability.ATOMIC: ("enqueue_tasks", "settle"),
    Capability.UNIQUE: ("enqueue_tasks",),
    Capability.CANCEL: ("cancel_tasks",),
    Capability.INSPECT: ("requeue_tasks", "list_tasks", "count_tasks", "list_workers", "purge"),
    Capability.PAUSE: ("pause_queue",),
    Capability.TRANSACTION: ("enqueue_in",),
}
"""The methods a class must override before it may claim a capability."""

_ACTIVE = (Phase.READY, Phase.RUNNING, Phase.STALLED, Phase.RETRYING)


def check_move(task_id: str, old: str, new: str) -> Status:
    """Return `new` as a `Status` if an operator may set it on a task that is `old`.

    Raises `ValidationError` for a word that is no status and `InvalidTransitionError` for a forbidden move.
    """
    try:
        status = Status(new)
    except ValueError:
        words = ", ".join(Status)
        raise ValidationError(f"{new!r} is not a status: use one of {words}") from None
    if status != old and status not in OPERATOR_MOVES[old]:
        allowed = ", ".join(sorted(OPERATOR_MOVES[old]))
        raise InvalidTransitionError(f"task {task_id!r} is {old} and cannot become {new}: it can become {allowed}")
    return status


class Backend(ABC):
    """Abstract base class for implementing custom backends."""

    capabilities: Capability = Capability(0)
    """What this store can do: an upper bound on the class, which `connect()` may narrow on the instance."""

    poll_interval: float = 1.0
    """How often, in seconds, an idle worker looks for work unless it is told otherwise."""

    prefetch: int = 250
    """How many very short tasks a worker may hold ready beyond its free slots: none that take 50 ms or more."""

    in_thread: bool = False
    """Whether a thread of the worker's process does the store's work: it gets the interpreter when tasks leave it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for capability in cls.capabilities:
            missing = [m for m in REQUIRED_METHODS[capability] if getattr(cls, m) is getattr(Backend, m)]
            if missing:
                raise TypeError(
                    f"{cls.__name__} claims {capability.name} without overriding {', '.join(missing)}: "
                    f"write the missing methods or take {capability.name} out of `capabilities`"
                )

    # --- 1. The six -----------------------------------------------------------------------------------------------

    @abstractmethod
    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Store a task in the backend. A task whose id is already there is left as it is.

        Raises `BackendError` if the task cannot be stored.
        """

    @abstractmethod
    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        """Reserve up to `max_tasks` tasks for execution by a worker: each goes to one caller only.

        Looks at all queues and takes the store's default lease. Returns an empty list at once when nothing is ready.
        """

    @abstractmethod
    async def get_task(self, task_id: str) -> Task | None:
        """Retrieve a task by id, or None if the store does not know it."""

    @abstractmethod
    async def update_task_status(self, task_id: str, status: str) -> None:
        """Set a task's status: an operator's write, which ends any lease so that the worker's settle is refused.

        `status` is "queued", "running", "completed" or "failed"; the same status again changes nothing. Raises
        `ValidationError` for another word, `InvalidTransitionError` for a forbidden move (`OPERATOR_MOVES`) and
        `TaskNotFoundError` for an unknown id.
        """

    @abstractmethod
    async def store_result(self, task_id: str, result: Result) -> None:
        """Store a task's result, overwriting an earlier one. Raises `TaskNotFoundError` for an unknown id."""

    @abstractmethod
    async def get_result(self, task_id: str) -> Result | None:
        """Retrieve a task's result, or None if there is none."""

    # --- 2. Composed from the six: slower, never wrong --------------------------------------------------------------

    async def connect(self) -> None:
        """Open what the store needs; called before first use, again without harm. May narrow `capabilities`."""

    async def connect_existing(self) -> None:
        """As `connect`, for those who only look: raises `BackendError` rather than make a new store."""
        await self.connect()

    async def close(self) -> None:
        """Let go of what `connect` opened; called again without harm."""

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def default_serializer(self) -> Serializer:
        """Return the serializer for calls and values where the user chose none."""
        from sitq.serialization import CloudpickleSerializer

        return CloudpickleSerializer()

    async def enqueue_tasks(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        """Store tasks and say for each whether it is new. All or nothing where ATOMIC is claimed."""
        for new in tasks:
            if new.function is None:
                raise ValidationError(f"task {new.task.id!r} came without its function, which this store needs")
            await self.enqueue_task(new.task, new.function, new.args, new.kwargs)
        return [Accepted(id=new.task.id) for new in tasks]

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        """Reserve up to `max_tasks` tasks from the worker's queues, under its lease.

        Higher priority first, then what was due earlier, then what was stored earlier. Raises `UnsupportedError`
        when the worker names queues and the store lacks QUEUES.
        """
        if worker.queues is not None:
            self._unsupported(Capability.QUEUES)
        reserved = await self.reserve_task(worker.id, max_tasks)
        try:
            return [await self._complete(task) for task in reserved]
        except Exception:
            await self._put_back(reserved)  # nobody hears of them: without leases they would be lost
            raise

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Apply what a worker decided; say for each outcome whether it still held the task.

        Idempotent per id and fence: the same outcome again answers True and changes nothing. The outcome of a lost
        lease answers False and changes nothing. `Outcome.delay` counts from now by the store's clock.
        """
        return [await self._settle_one(outcome) for outcome in outcomes]

    async def wait_for_work(self, worker: WorkerInfo, timeout: float) -> None:
        """Return when there may be work, after `timeout` seconds at the latest. A hint, never the truth."""
        await asyncio.sleep(timeout)

    async def wait_for_result(self, task_id: str, timeout: float) -> Result | None:
        """Return the result once it is there, or None after `timeout` seconds; 0 looks once."""
        deadline = time.monotonic() + timeout
        pause = 0.005
        while True:
            result = await self.get_result(task_id)
            left = deadline - time.monotonic()
            if result is not None or left <= 0:
                return result
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, 0.5)

    async def diagnose(self) -> Sequence[Finding]:
        """Say what the live store really gives, for `sitq doctor` and the worker's first lines.

        The names `store` (which one it is), `durability`, `file size` and `log size` are shown elsewhere, too.
        """
        return [Finding(name="store", value=type(self).__name__)]

    # --- 3. What six cannot express ---------------------------------------------------------------------------------

    def clone(self) -> Self:
        """LEASES: return a handle on the same store for the event loop of another thread."""
        self._unsupported(Capability.LEASES)

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        """LEASES: renew what `worker` holds, publish progress, and say what is lost and what should be cancelled.

        Afterwards at least two thirds of each lease are left; a store need not write before that.
        A reservation of this worker that `held` does not name, and that is older than half a lease, is given back: its
        reply was never heard. Keeps the worker in `list_workers` as well.
        """
        self._unsupported(Capability.LEASES)

    async def abandon_worker(self, worker_id: str) -> int:
        """LEASES: end all leases of a worker known to be dead (its process was waited for); return how many."""
        self._unsupported(Capability.LEASES)

    async def cancel_tasks(self, task_ids: Sequence[str]) -> list[Cancelled]:
        """CANCEL: end queued tasks as failed(cancelled), ask running ones to stop; say what happened to each."""
        self._unsupported(Capability.CANCEL)

    async def requeue_tasks(self, task_ids: Sequence[str]) -> list[bool]:
        """INSPECT: run finished tasks again, attempts and crashes reset; False where there is none."""
        self._unsupported(Capability.INSPECT)

    async def list_tasks(self, wanted: TaskFilter | None = None, limit: int = 100) -> list[Task]:
        """INSPECT: list tasks, newest first, without their payloads; `TaskFilter.after` gets the next page."""
        self._unsupported(Capability.INSPECT)

    async def count_tasks(self) -> list[QueueCounts]:
        """INSPECT: count each queue's tasks by phase."""
        self._unsupported(Capability.INSPECT)

    async def has_active_tasks(self, worker: WorkerInfo) -> bool:
        """INSPECT: say whether a task of the worker's queues is ready, running, stalled or retrying; not if paused.

        Counts all tasks; a store that keeps many overrides it.
        """
        wanted = [q for q in await self.count_tasks() if worker.queues is None or q.queue in worker.queues]
        return any(queue.phases.get(phase, 0) for queue in wanted if not queue.paused for phase in _ACTIVE)

    async def list_workers(self) -> list[WorkerInfo]:
        """INSPECT: list the workers heard of within their lease."""
        self._unsupported(Capability.INSPECT)

    async def purge(self, wanted: TaskFilter | None = None, limit: int = 500) -> int:
        """INSPECT: delete up to `limit` finished tasks; return how many.

        Without `wanted`, those whose retention has passed; with it, finished tasks that match, whatever their
        retention.
        """
        self._unsupported(Capability.INSPECT)

    async def pause_queue(self, queue: str, paused: bool) -> None:
        """PAUSE: stop (or go on) handing out the tasks of a queue; running ones are left alone."""
        self._unsupported(Capability.PAUSE)

    async def enqueue_in(self, connection: Any, tasks: Sequence[NewTask]) -> list[Accepted]:
        """TRANSACTION: store tasks inside the transaction of the caller's own connection."""
        self._unsupported(Capability.TRANSACTION)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _unsupported(self, capability: Capability) -> NoReturn:
        name = type(self).__name__
        raise UnsupportedError(f"{name} lacks the capability {capability.name}: choose a store that has it")

    async def _settle_one(self, outcome: Outcome) -> bool:
        stored = await self.get_task(outcome.task_id)
        if stored is None:
            return False
        status = _STATUS_AFTER[outcome.kind]
        if stored.status in (Status.COMPLETED, Status.FAILED):  # settled before, or ended by an operator
            return stored.status == status
        if outcome.result is not None:
            await self.store_result(outcome.task_id, outcome.result)
        await self.update_task_status(outcome.task_id, status)
        return True

    async def _put_back(self, reserved: Sequence[ReservedTask]) -> None:
        for task in reserved:
            for _ in range(3):
                with contextlib.suppress(Exception):
                    await self.update_task_status(task.id, Status.QUEUED)
                    break

    async def _complete(self, reserved: ReservedTask) -> ReservedTask:
        """Add what `get_task` knows to a reservation that came without options."""
        if reserved.options is not None:
            return reserved
        stored = await self.get_task(reserved.id)
        if stored is None:
            return reserved
        known = {field.name: getattr(stored, field.name) for field in dataclasses.fields(Task)}
        blank = {name: value for name, value in known.items() if getattr(reserved, name) in (None, "", 0)}
        return dataclasses.replace(reserved, **(blank | {"created_at": stored.created_at}))


_STATUS_AFTER: Mapping[str, Status] = {
    OutcomeKind.COMPLETED: Status.COMPLETED,
    OutcomeKind.FAILED: Status.FAILED,
    OutcomeKind.DEFERRED: Status.QUEUED,
    OutcomeKind.RELEASED: Status.QUEUED,
}
