"""What a child process needs of its worker's queue, as bytes.

Functions and classes of the started script cross by their importable name, as in a call, because in the child the
script is an ordinary module; so do context variables. A store crosses only if its class says how (`__reduce__`): a
copy of a store that lives in this process's memory would swallow what the child enqueues.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn

import cloudpickle

from sitq.backends.base import Backend
from sitq.core import ReservedTask, Result, Task
from sitq.exceptions import BackendError, SerializationError
from sitq.functions import function_name, is_importable
from sitq.queue import TaskQueue
from sitq.serialization import Serializer

__all__ = ["OutOfReach", "Setup", "pack", "unpack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a child needs to be a worker's child."""

    queue: TaskQueue
    serializer: Serializer
    max_rss: int | None = None


def pack(setup: Setup) -> bytes:
    """Encode a setup for `unpack`. Raises `SerializationError` naming the part that cannot cross."""
    queue = setup.queue
    parts = {
        "serializer": setup.serializer,
        "queue's serializer": queue.serializer,
        "lifespan": queue.lifespan,
        "middleware": queue.middleware,
        "contextvars": tuple(queue.contextvars.values()),
    }
    rest = (queue.max_payload, setup.max_rss, _pack_backend(queue.backend))
    try:
        return _dump((*parts.values(), *rest))  # in one piece: parts may share objects
    except Exception:  # noqa: BLE001 (looked at again below, part by part)
        _blame(parts)


def unpack(body: bytes) -> Setup:
    """Make of the bytes the child's own queue and serializer."""
    serializer, own, lifespan, middleware, variables, max_payload, max_rss, backend = pickle.loads(body)  # noqa: S301
    try:
        backend = pickle.loads(backend)  # noqa: S301 (from the worker, by a pipe of its own)
    except Exception as error:  # noqa: BLE001 (a driver that is missing here, for example)
        backend = OutOfReach(f"the store cannot be opened in a child process: {error}")
    queue = TaskQueue(
        backend, own, lifespan=lifespan, middleware=middleware, contextvars=variables, max_payload=max_payload
    )
    return Setup(queue=queue, serializer=serializer, max_rss=max_rss)


def _blame(parts: dict[str, Any]) -> NoReturn:
    for name, part in parts.items():
        try:
            _dump(part)
        except Exception as error:
            raise SerializationError(
                f"the {name} cannot cross into a child process ({type(error).__name__}: {error}): define it, and what "
                "it uses, at the top level of a module"
            ) from error
    raise SerializationError("the queue cannot cross into a child process")


def _pack_backend(backend: Backend) -> bytes:
    kind = type(backend)
    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
        backend = OutOfReach(
            f"{kind.__name__} cannot be reached from a child process: use a store that other processes can open, or, "
            f"in a {kind.__name__} of your own, write __reduce__ to say how"
        )
    try:
        return _dump(backend)
    except Exception as error:  # noqa: BLE001 (what a child cannot reach is said when it tries)
        return _dump(OutOfReach(str(error)))


# --- pickling ---------------------------------------------------------------------------------------------------------


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """Cloudpickle, but by name for what has a name in the child."""

    def reducer_override(self, value: Any) -> Any:
        name = _name_in_child(value)
        return super().reducer_override(value) if name is None else (_load, (name,))


def _dump(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _name_in_child(value: Any) -> str | None:
    if isinstance(value, ContextVar):
        return _name_of_variable(value)
    if isinstance(value, (FunctionType, type)) and value.__module__ == "__main__":
        name = function_name(value)
        return name if is_importable(name, value) else None
    return None


def _name_of_variable(variable: ContextVar[Any]) -> str:
    """Return `module:name` of a context variable, which does not know it itself."""
    for module in list(sys.modules.values()):
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                name = function_name(_At(module.__name__, attribute))
                if not name.startswith("__main__:"):
                    return name
    raise pickle.PicklingError(f"the context variable {variable.name!r} is not at the top level of a module")


class _At:
    """Has a module and a name, as functions do."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__qualname__ = module, name

    def __call__(self) -> None: ...


def _load(name: str) -> Any:
    module, _, path = name.partition(":")
    target: Any = importlib.import_module(module)
    for attribute in path.split("."):
        target = getattr(target, attribute)
    return target


# --- a store that stayed behind ---------------------------------------------------------------------------------------


class OutOfReach(Backend):
    """Stands in the child for a store that only the worker's process has: using it says so."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __reduce__(self) -> tuple[type[OutOfReach], tuple[str]]:
        return OutOfReach, (self._why,)

    def _refuse(self) -> NoReturn:
        raise BackendError(self._why)

    async def connect(self) -> None:
        self._refuse()

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._refuse()

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        self._refuse()

    async def get_task(self, task_id: str) -> Task | None:
        self._refuse()

    async def update_task_status(self, task_id: str, status: str) -> None:
        self._refuse()

    async def store_result(self, task_id: str, result: Result) -> None:
        self._refuse()

    async def get_result(self, task_id: str) -> Result | None:
        self._refuse()
