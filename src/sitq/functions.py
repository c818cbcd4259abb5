"""Functions and their names: `@task`, the name a function is stored under, and the way back.

A name is `module:qualname`. A function of the script that was started lives in `__main__` here and in an ordinary
module elsewhere, so it is named after the script's file.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sitq.core import Retry
from sitq.exceptions import UnresolvableError, ValidationError

if TYPE_CHECKING:
    from datetime import datetime, timedelta

__all__ = [
    "TaskSettings",
    "function_name",
    "is_importable",
    "registered",
    "registered_modules",
    "resolve",
    "settings_of",
    "task",
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What `@task` attached to a function: defaults for its options, and retry rules by exception type."""

    options: Mapping[str, Any] = field(default_factory=dict)
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()


_NO_SETTINGS = TaskSettings()
_SETTINGS = "__sitq_settings__"
_registry: dict[str, Callable[..., Any]] = {}


@overload
def task(function: F, /) -> F: ...
@overload
def task(
    *,
    queue: str = ...,
    priority: int = ...,
    expires: float | timedelta | datetime | None = ...,
    timeout: float | timedelta | None = ...,
    retry: int | Retry | None = ...,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = ...,
    give_up_on: type[BaseException] | tuple[type[BaseException], ...] = ...,
    executor: str = ...,
    retention: float | timedelta | None = ...,
    unique_for: float | timedelta | None = ...,
    context: Mapping[str, Any] = ...,
) -> Callable[[F], F]: ...
def task(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Give a function defaults for its options and register its name; the function itself is returned.

    `retry=3` means three attempts; `retry_on` and `give_up_on` say for which exceptions, `give_up_on` having the last
    word. A second definition under the same name replaces the first when it comes from the same file (a reload, a
    notebook); from another file it raises `ValidationError`.

        @task(queue="mail", retry=5, give_up_on=InvalidAddress)
        async def send(address: str) -> None: ...
    """
    from sitq.options import validate_options  # at the first decorator, not at import: `options` needs this module

    retry_on, give_up_on = _types(settings.pop("retry_on", Exception)), _types(settings.pop("give_up_on", ()))
    attached = TaskSettings(options=validate_options(settings), retry_on=retry_on, give_up_on=give_up_on)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function):
            raise ValidationError(f"@task decorates a function, not {function!r}")
        setattr(function, _SETTINGS, attached)
        _register(function_name(function), function)
        return function

    return decorate if function is None else decorate(function)


def settings_of(function: Callable[..., Any]) -> TaskSettings:
    """Return what `@task` attached to `function`, or the defaults."""
    settings = getattr(function, _SETTINGS, _NO_SETTINGS)
    return settings if isinstance(settings, TaskSettings) else _NO_SETTINGS


def function_name(function: Callable[..., Any]) -> str:
    """Return `module:qualname` for people and payloads; `is_importable` says whether it leads back."""
    module = _importable_module(getattr(function, "__module__", None) or "") or "__main__"
    qualname = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}:{qualname}"


def is_importable(name: str, function: Callable[..., Any]) -> bool:
    """Say whether `name` leads back to this very function."""
    if name.startswith("__main__:") or "<" in name:
        return False
    module, _, qualname = name.partition(":")
    if name not in _registry and getattr(sys.modules.get(module), qualname, None) is function:
        return True  # nearly all: the rest of this takes three times as long
    try:
        return resolve(name) is function
    except UnresolvableError:
        return False


def registered(name: str) -> Callable[..., Any] | None:
    """Return the function `@task` registered under `name`, if any."""
    return _registry.get(name)


def registered_modules() -> set[str]:
    """Return the modules `@task` has registered functions of, by the names they can be imported under."""
    return {name.partition(":")[0] for name in _registry}


def resolve(name: str) -> Callable[..., Any]:
    """Return the function called `name`, importing its module. Raises `UnresolvableError` if it leads nowhere."""
    function = _registry.get(name)
    if function is not None:
        return function
    module_name, _, qualname = name.partition(":")
    try:
        target: Any = _module(module_name)
        for attribute in qualname.split("."):
            target = getattr(target, attribute)
    except Exception as error:  # whatever a module raises while it is imported makes its names unresolvable here
        raise UnresolvableError(
            f"cannot resolve {name!r} ({type(error).__name__}: {error}): deploy the code that defines it, or start the "
            "worker where it can be imported"
        ) from error
    if not callable(target):
        raise UnresolvableError(f"{name!r} is not a function but {type(target).__name__}: rename one of the two")
    return target  # type: ignore[no-any-return]


def _module(name: str) -> Any:
    main = sys.modules.get("__main__")
    if main is not None and _importable_module("__main__") == name:
        return main
    return sys.modules.get(name) or importlib.import_module(name)


def _importable_module(module: str) -> str | None:
    """Return the name `module` can be imported by elsewhere; None for a `__main__` that has no such name."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    # At its end a script loses `__file__`, while its threads go on: importing its name would run it once more.
    return _module_of_file(getattr(main, "__file__", None) or getattr(getattr(main, "__loader__", None), "path", None))


@lru_cache(maxsize=8)  # a worker asks for each task, and a path takes as long as everything else of decoding a call
def _module_of_file(file: str | None) -> str | None:
    if file is None or not file.endswith(".py"):
        return None
    stem = os.path.splitext(os.path.basename(file))[0]  # noqa: PTH119, PTH122 (pathlib is 3 ms of import)
    return stem if stem.isidentifier() else None


def _register(name: str, function: Callable[..., Any]) -> None:
    if "<locals>" in name or name.startswith("__main__:"):
        return  # no name leads back to it: it travels by value
    before = _registry.get(name)
    if before is not None and "__main__" not in (before.__module__, function.__module__):
        files = _file_of(before), _file_of(function)
        if files[0] != files[1]:
            raise ValidationError(
                f"two functions are registered as {name!r}, in {files[0]} and {files[1]}: rename one of them"
            )
    _registry[name] = function


def _file_of(function: Callable[..., Any]) -> str:
    return inspect.unwrap(function).__code__.co_filename if hasattr(function, "__code__") else repr(function)


def _types(value: Any) -> tuple[type[BaseException], ...]:
    types = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, type) and issubclass(item, BaseException) for item in types):
        raise ValidationError(f"retry_on and give_up_on take exception types, not {value!r}")
    return types
