"""What all commands share: their common options, the store they open, exit codes, and JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from sitq.backends.base import Backend
from sitq.cli._target import TargetError, load_queue
from sitq.cli._text import printable
from sitq.exceptions import BackendError, SitqError
from sitq.queue import TaskQueue

__all__ = [
    "EXIT_FAILED",
    "EXIT_STORE",
    "EXIT_USAGE",
    "BackendOption",
    "FailedError",
    "JsonOption",
    "YesOption",
    "confirmed",
    "console",
    "one_of",
    "open_queue",
    "print_json",
    "reporting",
    "run",
    "usage",
]

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STORE = 3

BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-b",
        metavar="URL",
        envvar="SITQ_BACKEND",
        show_envvar=False,
        help="Store: URL or app:queue ($SITQ_BACKEND).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class FailedError(Exception):
    """The command did not do what it was asked to; the message says why."""


def console(stderr: bool = False) -> Console:
    """Return a console on the stream as it is now: tests and redirections replace it."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def complain(message: str) -> None:
    """Say on stderr what went wrong."""
    print(f"sitq: {printable(message)}", file=sys.stderr)


def usage(message: str) -> NoReturn:
    """End the command: it was called in a way that makes no sense."""
    complain(message)
    raise typer.Exit(EXIT_USAGE)


def one_of(words: type[E]) -> Callable[[str], E]:
    """Return a parser of an option: typer's own says "Value error", and every word in quotes."""

    def parse(text: str) -> E:
        try:
            return words(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is none of {', '.join(words)}") from None

    parse.__name__ = words.__name__
    return parse


@contextmanager
def reporting() -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code."""
    try:
        yield
    except TargetError as error:
        complain(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except BackendError as error:
        complain(str(error))
        raise typer.Exit(EXIT_STORE) from None
    except (FailedError, SitqError) as error:
        complain(str(error))
        raise typer.Exit(EXIT_FAILED) from None


def queue_of(backend: str | None) -> TaskQueue:
    """Return the queue `--backend` or `SITQ_BACKEND` names."""
    if not backend:
        usage("which store? Give --backend sqlite:///tasks.db or --backend app:queue, or set SITQ_BACKEND")
    return load_queue(backend)


@asynccontextmanager
async def open_queue(queue: TaskQueue) -> AsyncIterator[Backend]:
    """Open a store that is there already, and close it again."""
    await queue.backend.connect_existing()
    await queue.connect()
    try:
        yield queue.backend
    finally:
        await queue.close()


def run(backend: str | None, work: Callable[[TaskQueue, Backend], Awaitable[T]]) -> T:
    """Do `work` on the store that `--backend` names; what goes wrong becomes an exit code."""
    with reporting():
        queue = queue_of(backend)

        async def opened() -> T:
            async with open_queue(queue) as store:
                return await work(queue, store)

        return asyncio.run(opened())


def confirmed(question: str, yes: bool) -> None:
    """Go on if the user wants to; end the command if not."""
    if yes:
        return
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # stdout is for the answer
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        complain("nothing was done (--yes answers the question)")
        raise typer.Exit(EXIT_FAILED)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as one JSON document."""
    print(json.dumps(value, indent=indent, default=_plain, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
