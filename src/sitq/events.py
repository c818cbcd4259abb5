"""What can be listened to with `queue.on(event, callback)`, and how callbacks are called."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sitq.exceptions import ValidationError

__all__ = ["Event", "EventName", "Listeners"]

logger = logging.getLogger("sitq")


class EventName(StrEnum):
    """The events. Those of tasks carry the task's id; those of a worker only the worker's."""

    ENQUEUED = "enqueued"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEFERRED = "deferred"
    RELEASED = "released"
    LEASE_LOST = "lease_lost"
    QUARANTINED = "quarantined"
    WORKER_STARTED = "worker_started"
    WORKER_STOPPED = "worker_stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. `reason` says why, where there is a why; `delay` and `duration` are in seconds."""

    name: EventName
    task_id: str | None = None
    task_name: str | None = None
    queue: str | None = None
    attempt: int | None = None
    worker_id: str | None = None
    reason: str | None = None
    error: str | None = None
    delay: float | None = None
    duration: float | None = None


class Listeners:
    """The callbacks of one queue. They run where the event happens, so they should be short."""

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callable[[Event], object]]] = {}

    def add(self, name: str, callback: Callable[[Event], object]) -> None:
        """Call `callback` at each event called `name`. Raises `ValidationError` for an unknown name."""
        if name not in list(EventName):
            raise ValidationError(f"{name!r} is no event: the events are {', '.join(EventName)}")
        if inspect.iscoroutinefunction(callback) or not callable(callback):
            raise ValidationError("a callback is a plain function; let it start a task if it must wait for something")
        self._callbacks.setdefault(name, []).append(callback)

    def wanted(self, name: str) -> bool:
        """Say whether anybody listens: events cost nothing until then."""
        return name in self._callbacks

    def emit(self, name: EventName, **fields: Any) -> None:
        """Call the callbacks of an event; one that raises is logged and disturbs nothing else."""
        callbacks = self._callbacks.get(name)
        if not callbacks:
            return
        event = Event(name=name, **fields)
        for callback in callbacks:
            try:
                callback(event)
            except Exception:
                logger.exception("a callback for the event %s failed", name)
