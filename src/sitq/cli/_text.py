"""How the command line writes moments, durations, sizes and ids, and how it reads them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = [
    "age",
    "brief",
    "clock_time",
    "compact",
    "duration",
    "moment_before",
    "printable",
    "seconds_of",
    "short_id",
    "size",
]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SHORT = 8


def duration(seconds: float) -> str:
    """Write a duration for people: two units at most."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 86400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86400, "d", whole % 86400 // 3600, "h")


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large} {unit} {small} {small_unit}" if small else f"{large} {unit}"


def brief(seconds: float) -> str:
    """Write a duration in at most five characters, for narrow columns."""
    text = duration(max(seconds, 0.0)).split(" ")
    return text[0].partition(".")[0] + {"ms": "ms", "min": "m"}.get(text[1], text[1])


def age(moment: datetime | None, now: datetime) -> str:
    """Write how long ago a moment was, or in how long it will be."""
    if moment is None:
        return "-"
    seconds = (now - moment).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def clock_time(moment: datetime) -> str:
    """Write a moment in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def size(number: float) -> str:
    """Write a number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def compact(number: int) -> str:
    """Write a count in at most five characters."""
    if number < 100_000:
        return str(number)
    if number < 1_000_000:
        return f"{number // 1000}k"
    return f"{number / 1_000_000:.1f}M" if number < 100_000_000 else f"{number // 1_000_000}M"


def printable(text: str) -> str:
    """Return text that can do a terminal no harm: names and errors come from whoever can enqueue."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def short_id(task_id: str) -> str:
    """Return the end of an id: ids of the same minute begin alike."""
    return task_id if len(task_id) <= _SHORT + 1 else f"…{task_id[-_SHORT:]}"


def seconds_of(text: str) -> float | None:
    """Read a duration such as `90s`, `10m`, `2h`, `1d`, `1h30m`; None if it is none."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def moment_before(text: str, now: datetime) -> datetime | None:
    """Read a moment: so long ago (`10m`), or an ISO date or time, in UTC unless it says otherwise; None if neither."""
    seconds = seconds_of(text)
    if seconds is not None:
        return now - timedelta(seconds=seconds)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
