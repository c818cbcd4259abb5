"""How stores read a task: does it match a filter, and what is the result of one that expired unseen."""

from __future__ import annotations

from datetime import datetime

from sitq.core import Reason, Result, Task, TaskFilter, phase_of

__all__ = ["expired_result", "matches"]


def matches(task: Task, wanted: TaskFilter, now: datetime) -> bool:
    """Say whether every field of `wanted` that is set fits `task`; `after` is the caller's."""
    return (
        (wanted.phase is None or phase_of(task, now) == wanted.phase)
        and (wanted.queue is None or (task.options.queue if task.options else "default") == wanted.queue)
        and (wanted.name is None or task.name == wanted.name)
        and (wanted.worker_id is None or task.worker_id == wanted.worker_id)
        and (wanted.since is None or task.created_at >= wanted.since)
        and (wanted.before is None or task.created_at < wanted.before)
    )


def expired_result(task: Task) -> Result:
    """Return the result of a queued task whose `expires_at` has passed."""
    expires_at = task.options.expires_at if task.options else None
    return Result(
        task_id=task.id,
        status="failed",
        error=f"expired at {expires_at:%Y-%m-%d %H:%M:%S} UTC before it was started" if expires_at else "expired",
        reason=Reason.EXPIRED,
        attempts=task.attempt,
        enqueued_at=task.created_at,
        finished_at=expires_at,
    )
