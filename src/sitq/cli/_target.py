"""From `module:attribute` or a URL to a `TaskQueue`, with errors that say what is there instead."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from sitq.backends.base import Backend
from sitq.exceptions import SitqError, ValidationError
from sitq.queue import TaskQueue
from sitq.sync import SyncTaskQueue

__all__ = ["TargetError", "load_module", "load_queue"]


class TargetError(Exception):
    """The text leads to no queue; the message says what was found, and what to write."""


def load_queue(target: str) -> TaskQueue:
    """Return the queue a text names: `app:queue`, a factory `app:make_queue`, or a URL such as `sqlite:///tasks.db`.

    The current folder is put on `sys.path`. Raises `TargetError`.
    """
    put_folder_on_path()
    if "://" in target:
        try:
            return TaskQueue(target)
        except (SitqError, ImportError) as error:
            raise TargetError(str(error)) from error
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise TargetError(_without_attribute(target, module_name))
    module = load_module(module_name)
    found: object = module
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise TargetError(f"{module_name} has no {path!r}{_queues_in(module)}") from None
    return _as_queue(found, target, module)


def put_folder_on_path() -> None:
    """Make what lies in the current folder importable, as `python -m` does."""
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)


def load_module(name: str) -> ModuleType:
    """Import a module. Raises `TargetError` when there is none, or when it raises."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(_no_module(name, error.name)) from None
        raise TargetError(_broken(name, error)) from error
    except Exception as error:
        raise TargetError(_broken(name, error)) from error
    except SystemExit as error:
        raise TargetError(f"importing {name} ended the process (exit code {error.code}): is it a script?") from error


def _as_queue(found: object, target: str, module: ModuleType) -> TaskQueue:
    made = found
    if callable(found) and not isinstance(found, (TaskQueue, Backend)):
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError):
            raise TargetError(f"{target} needs arguments, so it cannot make a queue{_queues_in(module)}") from None
        try:
            made = found()
        except Exception as error:
            raise TargetError(_broken(f"{target}()", error)) from error
    if isinstance(made, TaskQueue):
        return made
    if isinstance(made, SyncTaskQueue):
        return made.queue
    if isinstance(made, Backend):
        return TaskQueue(made)
    if inspect.iscoroutine(made):
        made.close()
    what = f"returned {type(made).__name__}" if made is not found else f"is {type(made).__name__}"
    raise TargetError(f"{target} {what}, not a TaskQueue{_queues_in(module)}")


def _queues_in(module: ModuleType) -> str:
    names = sorted(name for name, value in vars(module).items() if isinstance(value, TaskQueue))
    if not names:
        return f": there is no TaskQueue in {module.__name__}"
    return ": did you mean " + " or ".join(f"{module.__name__}:{name}" for name in names) + "?"


def _without_attribute(target: str, module_name: str) -> str:
    if target.endswith((".db", ".sqlite", ".sqlite3")):
        return f"{target!r} is no app:queue: for a SQLite file write sqlite:///{target}"
    name = module_name.removesuffix(".py").replace(os.sep, ".")
    try:
        queues = _queues_in(load_module(name)) if name else ""
    except TargetError:
        queues = ""
    return f"{target!r} names no queue{queues or ': write module:attribute, such as app:queue, or a URL'}"


def _no_module(name: str, missing: str) -> str:
    if name.endswith(".py") or os.sep in name:
        return f"no module {name!r}: write {name.removesuffix('.py').replace(os.sep, '.')!r}, without .py"
    parent = sys.modules.get(missing.rpartition(".")[0])
    if parent is not None and not hasattr(parent, "__path__"):
        return f"no module {missing!r}: {parent.__name__} is a module, not a package"
    folder = Path.cwd()
    here = sorted(path.stem for path in folder.glob("*.py"))
    here += sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    hint = f"in {folder} there are {', '.join(here[:8])}" if here else f"{folder} has no Python modules"
    return f"no module {missing!r}: {hint}; change to your project's folder, or install it"


def _broken(name: str, error: BaseException) -> str:
    """Say what happened in the user's own code, with the part of the traceback that is theirs."""
    trace = error.__traceback__
    own = (__name__, "importlib", "importlib._bootstrap", "importlib._bootstrap_external")
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in own:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    what = "is wrong" if isinstance(error, ValidationError) else "failed"
    return f"{name} {what} ({type(error).__name__}: {error})\n{text}"
