"""sitq: a small async-first task queue that starts as one SQLite file and keeps its promises on every store."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sitq.core import Cancelled, Phase, Reason, Result, Retry, Status, Task
from sitq.current import CurrentTask, current_task
from sitq.events import Event, EventName
from sitq.exceptions import (
    BackendError,
    Defer,
    Discard,
    InvalidTransitionError,
    PartialEnqueueError,
    PayloadTooLargeError,
    ResultTimeoutError,
    SchemaError,
    SerializationError,
    SignatureError,
    SitqError,
    TaskFailedError,
    TaskNotFoundError,
    UnresolvableError,
    UnsupportedError,
    ValidationError,
    WorkerError,
)
from sitq.functions import task
from sitq.queue import TaskHandle, TaskQueue

if TYPE_CHECKING:
    from sitq._json import JsonSerializer
    from sitq._signing import SignedSerializer
    from sitq.backends.memory import MemoryBackend
    from sitq.backends.postgres import PostgresBackend as PostgresBackend
    from sitq.backends.redis import RedisBackend as RedisBackend
    from sitq.backends.sqlite import SQLiteBackend
    from sitq.serialization import CloudpickleSerializer
    from sitq.sync import SyncTaskHandle, SyncTaskQueue
    from sitq.worker import RunCounts, Worker

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Cancelled",
    "CloudpickleSerializer",
    "CurrentTask",
    "Defer",
    "Discard",
    "Event",
    "EventName",
    "InvalidTransitionError",
    "JsonSerializer",
    "MemoryBackend",
    "PartialEnqueueError",
    "PayloadTooLargeError",
    "Phase",
    "Reason",
    "Result",
    "ResultTimeoutError",
    "Retry",
    "RunCounts",
    "SQLiteBackend",
    "SchemaError",
    "SerializationError",
    "SignatureError",
    "SignedSerializer",
    "SitqError",
    "Status",
    "SyncTaskHandle",
    "SyncTaskQueue",
    "Task",
    "TaskFailedError",
    "TaskHandle",
    "TaskNotFoundError",
    "TaskQueue",
    "UnresolvableError",
    "UnsupportedError",
    "ValidationError",
    "Worker",
    "WorkerError",
    "current_task",
    "task",
]
"""What `from sitq import *` gives: it works without extras, so `PostgresBackend` and `RedisBackend` are not in it."""

_LAZY = {
    "CloudpickleSerializer": "sitq.serialization",
    "JsonSerializer": "sitq._json",
    "MemoryBackend": "sitq.backends.memory",
    "PostgresBackend": "sitq.backends.postgres",
    "RedisBackend": "sitq.backends.redis",
    "RunCounts": "sitq.worker",
    "SQLiteBackend": "sitq.backends.sqlite",
    "SignedSerializer": "sitq._signing",
    "SyncTaskHandle": "sitq.sync",
    "SyncTaskQueue": "sitq.sync",
    "Worker": "sitq.worker",
}


def __getattr__(name: str) -> Any:
    """Import when it is first asked for what a process may never use: a producer needs no worker."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'sitq' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY})
