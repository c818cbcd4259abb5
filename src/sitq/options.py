"""From what a user writes to a task's options: `validate_options` checks words and values, `Plan` holds the outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from sitq.core import DEFAULT_OPTIONS, Retry, TaskOptions, utcnow
from sitq.exceptions import LONGEST, ValidationError

__all__ = ["OptionValues", "Plan", "validate_options"]

Seconds = float | timedelta
EXECUTORS = ("auto", "thread", "process")
_MAX_NAME = 200


class OptionValues(TypedDict, total=False):
    """The options of `TaskQueue.options`; `@task` takes those that do not belong to one enqueue."""

    queue: str
    priority: int
    delay: Seconds
    eta: datetime | None
    expires: Seconds | datetime | None
    timeout: Seconds | None
    retry: int | Retry | None
    unique: str | None
    unique_for: Seconds | None
    executor: str
    retention: Seconds | None
    context: Mapping[str, Any]
    connection: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a task to be made, checked: `options` as stored, and what is worked out at each enqueue."""

    options: TaskOptions
    delay: float | None = None
    eta: datetime | None = None
    expires: float | datetime | None = None
    connection: Any = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """Make a plan of validated values."""
        stored = {name: value for name, value in values.items() if name in _STORED}
        options = TaskOptions(**stored) if stored else DEFAULT_OPTIONS
        return cls(options, **{name: value for name, value in values.items() if name not in _STORED})


_STORED = frozenset(
    {"queue", "priority", "timeout", "retry", "unique", "unique_for", "executor", "retention", "context"}
)
_PER_ENQUEUE = frozenset({"delay", "eta", "unique", "connection"})


def validate_options(values: Mapping[str, Any], per_enqueue: bool = False) -> dict[str, Any]:
    """Return `values` checked and in their plain form. Raises `ValidationError` naming what is wrong.

    `per_enqueue` admits the options of a single enqueue, which make no sense on `@task`.
    """
    checked: dict[str, Any] = {}
    for name, value in values.items():
        check = _CHECKS.get(name)
        if check is None or (name in _PER_ENQUEUE and not per_enqueue):
            known = ", ".join(sorted(_CHECKS if per_enqueue else set(_CHECKS) - _PER_ENQUEUE))
            raise ValidationError(f"{name!r} is no option here: the options are {known}")
        checked[name] = check(name, value)
    if checked.get("delay") is not None and checked.get("eta") is not None:
        raise ValidationError("give delay or eta, not both")
    if checked.get("unique_for") is not None and per_enqueue and not checked.get("unique"):
        raise ValidationError("unique_for holds a unique key: give unique as well")
    return checked


def check_moment(name: str, value: Any) -> datetime | None:
    """Return an aware `datetime` in UTC, or None."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ValidationError(f"{name} is an aware datetime, not {value!r}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValidationError(f"{name} has no time zone: use datetime.now(UTC) or datetime(…, tzinfo=…)")
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        raise ValidationError(f"{name} is beyond the calendar in UTC: {value!r}") from None
    if (moment - utcnow()).total_seconds() > LONGEST:
        raise ValidationError(f"{name} is more than 100 years away: leave it out for never, not {value!r}")
    return moment


def _queue(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > _MAX_NAME or not value.isprintable():
        raise ValidationError(f"{name} is a name of 1 to {_MAX_NAME} printable characters, not {value!r}")
    if "," in value or ":" in value or value != value.strip():  # `sitq worker --queues a,b:2` could not name it
        raise ValidationError(f"{name} is a name without commas, colons and spaces around it, not {value!r}")
    return value


def _priority(_name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 9:
        raise ValidationError(f"priority is a whole number from 0 to 9, higher first, not {value!r}")
    return value


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= LONGEST:
        raise ValidationError(f"{name} is a number of seconds from 0 to 100 years, or a timedelta, not {value!r}")
    return float(seconds)


def _timeout(name: str, value: Any) -> float | None:
    seconds = _seconds(name, value)
    if seconds == 0:
        raise ValidationError(f"{name} is more than 0 seconds; None means without limit")
    return seconds


def _expires(name: str, value: Any) -> float | datetime | None:
    return check_moment(name, value) if isinstance(value, datetime) else _seconds(name, value)


def _retry(_name: str, value: Any) -> Retry | None:
    if value is None:
        return None
    retry = Retry(max_attempts=value) if type(value) is int else value
    if not isinstance(retry, Retry):
        raise ValidationError(f"retry is the number of attempts, at least 1, or a Retry(…), not {value!r}")
    return retry


def _unique(_name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or len(value) > 1_000):
        raise ValidationError(f"unique is a key of 1 to 1,000 characters, not {value!r}")
    return value


def _executor(_name: str, value: Any) -> str:
    if value not in EXECUTORS:
        raise ValidationError(f"executor is one of {', '.join(EXECUTORS)}, not {value!r}")
    return str(value)


def _context(_name: str, value: Any) -> dict[str, Any]:
    import json

    try:
        plain = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValidationError(f"context is plain data that JSON can hold: {error}") from error
    if not isinstance(plain, dict) or plain != value:
        raise ValidationError("context is a dict of plain data with string keys")
    return plain


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "queue": _queue,
    "priority": _priority,
    "delay": _seconds,
    "eta": check_moment,
    "expires": _expires,
    "timeout": _timeout,
    "retry": _retry,
    "unique": _unique,
    "unique_for": _seconds,
    "executor": _executor,
    "retention": _seconds,
    "context": _context,
    "connection": lambda _name, value: value,
}


def moment_after(value: float | datetime | None) -> datetime | None:
    """Return the moment `value` seconds from now, or the moment that `value` is."""
    return utcnow() + timedelta(seconds=value) if isinstance(value, float) else value
