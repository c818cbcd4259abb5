"""What stores agree on: which text they keep, how long, what a filter means, and the result of what expired unseen."""

from __future__ import annotations

from datetime import datetime

from sitq.core import Reason, Result, Status, Task, TaskFilter, phase_of

__all__ = ["RETENTION", "clean", "expired_result", "matches"]

RETENTION = {Status.COMPLETED: 86_400.0, Status.FAILED: 7 * 86_400.0}
"""How many seconds finished tasks are kept unless their options say otherwise."""


def clean(text: str | None) -> str | None:
    """Return text that every store can hold: what some cannot (NUL, half a surrogate pair) is written out."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


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
