"""What a running task can know of itself and say to the outside: `current_task()`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sitq.exceptions import SitqError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sitq.core import ReservedTask
    from sitq.queue import TaskQueue

__all__ = ["CurrentTask", "current_task"]


class CurrentTask:
    """The task that is running, seen from inside.

    `fence` grows with every run of the task: pass it along with writes to other systems, and let them refuse a lower
    one. `queue` enqueues more tasks. `state` is what the queue's `lifespan` yielded. `cancelled` turns True when the
    task should stop: a plain function that runs for long looks at it now and then.
    """

    __slots__ = (
        "_on_progress",
        "_queue",
        "attempt",
        "cancelled",
        "context",
        "fence",
        "id",
        "name",
        "progress_value",
        "queue_name",
        "state",
    )

    def __init__(
        self,
        reserved: ReservedTask,
        queue: TaskQueue,
        state: Any,
        on_progress: Callable[[Any], None] | None = None,
    ) -> None:
        self.id = reserved.id
        self.name = reserved.name
        self.attempt = max(reserved.attempt, 1)
        self.fence = reserved.fence
        self.queue_name = reserved.options.queue if reserved.options else "default"
        self.context: Mapping[str, Any] = reserved.options.context if reserved.options else {}
        self.state = state
        self.cancelled = False
        self._queue = queue
        self._on_progress = on_progress
        self.progress_value: Any = None

    @property
    def queue(self) -> TaskQueue:
        """The queue, to enqueue more tasks."""
        return self._queue

    def progress(self, value: Any) -> None:
        """Publish how far the task is, as plain data; producers read it as `(await queue.get_task(id)).progress`.

        It travels with the worker's next heartbeat, within a second, and when the task ends. Raises `ValidationError`
        for what JSON cannot hold.
        """
        import json  # a millisecond of import, for those who need it

        try:
            self.progress_value = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValidationError(f"progress is plain data that JSON can hold: {error}") from error
        if self._on_progress is not None:
            self._on_progress(self.progress_value)


_current: ContextVar[CurrentTask] = ContextVar("sitq_current_task")


def current_task() -> CurrentTask:
    """Return the task this code runs in. Raises `SitqError` outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise SitqError("current_task() works inside a task only: this code was not called by a worker") from None
