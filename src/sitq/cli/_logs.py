"""What `sitq worker` writes while it works: readable lines where people watch, JSON lines where machines do."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from sitq.cli._text import duration, printable, short_id
from sitq.events import Event, EventName
from sitq.queue import TaskQueue

__all__ = ["JsonFormatter", "TextFormatter", "log_tasks", "set_up_logging"]

logger = logging.getLogger("sitq.tasks")

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def set_up_logging(log_format: str | None, level: str, stream: TextIO | None = None) -> None:
    """Send all logging of this process to one stream (stderr) in one format.

    Without a format it is text, unless the app has set up logging itself: then that stays as it is.
    """
    stream = stream or sys.stderr
    logging.getLogger("sitq").setLevel(level_number(level))
    if log_format is None and logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(stream)
    watched = stream.isatty()
    colours = watched and "NO_COLOR" not in os.environ
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(colours, dated=not watched))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger().setLevel(max(logging.INFO, level_number(level)))


def level_number(level: str) -> int:
    """Return the number logging has for a level's name."""
    return logging.getLevelNamesMapping()[level.upper()]


def log_tasks(queue: TaskQueue) -> None:
    """Log the tasks that start and succeed; the worker itself logs what goes wrong.

    Only if the level asks for it: at tens of thousands of tasks a second, nobody reads lines and each of them costs.
    """
    if logger.isEnabledFor(logging.INFO):
        queue.on(EventName.SUCCEEDED, _succeeded)
    if logger.isEnabledFor(logging.DEBUG):
        queue.on(EventName.STARTED, _started)


def _succeeded(event: Event) -> None:
    logger.info("task %s (%s) completed", event.task_id, event.task_name, extra={"sitq": _fields(event)})


def _started(event: Event) -> None:
    logger.debug("task %s (%s) started", event.task_id, event.task_name, extra={"sitq": _fields(event)})


def _fields(event: Event) -> dict[str, Any]:
    return {
        "event": event.name.value,
        "task_id": event.task_id,
        "task_name": event.task_name,
        "queue": event.queue,
        "attempt": event.attempt,
        "worker_id": event.worker_id,
        "duration": event.duration,
    }


class TextFormatter(logging.Formatter):
    """`10:22:31 INFO    app:add …9f3c21ab done in 12 ms`."""

    def __init__(self, colours: bool, dated: bool) -> None:
        super().__init__()
        self._colours = colours
        self._time = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        level = f"{record.levelname:<7}"
        if self._colours:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        line = f"{moment:{self._time}} {level} {_message(record)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _message(record: logging.LogRecord) -> str:
    fields: Mapping[str, Any] | None = getattr(record, "sitq", None)
    if not fields or "task_id" not in fields:
        return printable(record.getMessage())
    text = f"{printable(fields['task_name'])} {short_id(fields['task_id'])} {printable(_what(fields))}"
    trace = fields.get("traceback")
    return f"{text}\n{printable(trace.rstrip())}" if trace else text


def _what(fields: Mapping[str, Any]) -> str:
    """Say what happened to a task."""
    took = "" if fields.get("duration") is None else duration(fields["duration"])
    why = fields.get("error") or fields.get("reason")
    match fields["event"]:
        case EventName.SUCCEEDED:
            return f"done in {took}" if took else "done"
        case EventName.FAILED:
            reason = fields.get("reason")
            words = "failed" if reason in (None, "error") else f"failed ({reason})"
            return f"{words} after {took}: {why}" if took else f"{words}: {why}"
        case EventName.DEFERRED | EventName.RELEASED:
            return f"again in {duration(fields.get('delay') or 0.0)}: {why}"
        case EventName.LEASE_LOST:
            return f"{why}; what it did here is not recorded"
    return str(fields["event"])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, pid, and the task's fields where there is a task."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        fields: Mapping[str, Any] = getattr(record, "sitq", None) or {}
        line |= {name: value for name, value in fields.items() if value is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
