"""When a worker should end by itself, so that a fresh process can take its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sitq.exceptions import ValidationError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Tasks run, and bytes of memory taken (resident set size); `on_reached` is called once, when the end begins."""

    max_tasks: int | None = None
    max_rss: int | None = None
    on_reached: Callable[[], object] = bool

    def __post_init__(self) -> None:
        for name in ("max_tasks", "max_rss"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValidationError(f"{name} is a whole number of 1 or more, or None for no limit, not {value!r}")
