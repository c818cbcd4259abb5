"""The options of a task as stores of bytes keep them: queue and priority in columns, the rest as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sitq.core import DEFAULT_OPTIONS, Retry, TaskOptions
from sitq.exceptions import ValidationError

__all__ = ["options_from", "options_text"]

_LAST = 253_402_300_799.0  # the end of the year 9999: what is later, a float rounds out of the calendar


def options_text(options: TaskOptions) -> str | None:
    """Return what queue and priority do not say; None when that is nothing, as for most tasks."""
    data: dict[str, Any] = {
        "expires_at": options.expires_at and options.expires_at.timestamp(),
        "timeout": options.timeout,
        "retry": options.retry and [options.retry.max_attempts, options.retry.base, options.retry.cap],
        "unique": options.unique,
        "unique_for": options.unique_for,
        "executor": None if options.executor == DEFAULT_OPTIONS.executor else options.executor,
        "retention": options.retention,
        "context": dict(options.context) or None,
    }
    data = {name: value for name, value in data.items() if value is not None}
    try:
        return json.dumps(data, separators=(",", ":")) if data else None
    except (TypeError, ValueError) as error:
        raise ValidationError(f"the context of a task is plain data that fits into JSON: {error}") from error


def options_from(queue: str, priority: int, text: str | bytes | None) -> TaskOptions:
    """Return the options of a stored task."""
    if not text:
        return _simple(queue, priority)
    data: dict[str, Any] = json.loads(text)
    if "expires_at" in data:
        data["expires_at"] = datetime.fromtimestamp(min(data["expires_at"], _LAST), UTC)
    if "retry" in data:
        max_attempts, base, cap = data["retry"]
        data["retry"] = Retry(max_attempts=max_attempts, base=base, cap=cap)
    return TaskOptions(queue=queue, priority=priority, **data)


@lru_cache(maxsize=1024)
def _simple(queue: str, priority: int) -> TaskOptions:
    return TaskOptions(queue=queue, priority=priority)
