"""Finding tasks: by an abbreviated id, or all that fit filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from sitq.backends.base import Backend, Capability
from sitq.cli._command import FailedError, one_of, usage
from sitq.cli._text import moment_before
from sitq.core import Phase, Task, TaskFilter, utcnow

__all__ = ["NameOption", "PhaseOption", "QueueOption", "SinceOption", "Wanted", "find_task", "matching_ids", "wanted"]

_PAGE = 1000
_LOOKED_THROUGH = 100_000
_LEAST = 4
_NAMED = 5

PhaseOption = Annotated[
    Phase | None, typer.Option(metavar="PHASE", parser=one_of(Phase), help="ready, running, failed, quarantined, …")
]
QueueOption = Annotated[str | None, typer.Option("--queue", "-q", metavar="NAME", help="Of this queue.")]
NameOption = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of this function: module:function.")]
SinceOption = Annotated[str | None, typer.Option(metavar="WHEN", help="Enqueued since: 10m, 2h, 1d, or a date.")]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The filters of a command line."""

    phase: Phase | None = None
    queue: str | None = None
    name: str | None = None
    since: datetime | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.phase, self.queue, self.name, self.since))

    def words(self, number: int | None = None) -> str:
        """Say it in a sentence: `12 failed tasks of queue 'mail'`."""
        words = [] if number is None else [f"{number:,}"]
        words += [self.phase.value] if self.phase else []
        words += ["task" if number == 1 else "tasks"]
        words += [f"of queue {self.queue!r}"] if self.queue is not None else []
        words += [f"called {self.name}"] if self.name is not None else []
        words += [f"since {self.since:%Y-%m-%d %H:%M} UTC"] if self.since is not None else []
        return " ".join(words)

    def filter(self, phase: Phase | None = None, after: str | None = None) -> TaskFilter:
        """Return it as the store wants it; `phase` where the command line names none."""
        return TaskFilter(phase=self.phase or phase, queue=self.queue, name=self.name, since=self.since, after=after)


def wanted(phase: Phase | None, queue: str | None, name: str | None, since: str | None) -> Wanted:
    """Read the filters; a moment that cannot be read ends the command."""
    moment = None
    if since is not None:
        moment = moment_before(since, utcnow())
        if moment is None:
            usage(f"cannot read --since {since}: write 10m, 2h, 1d, or a date such as 2026-01-31 or 2026-01-31T12:00")
    return Wanted(phase, queue, name, moment)


async def find_task(store: Backend, text: str) -> Task:
    """Return the task with this id, or the only one whose id begins or ends with it.

    Raises `FailedError` when there is none, or more than one.
    """
    task = await store.get_task(text)
    if task is not None:
        return task
    part = text.strip("…").lower()
    if len(part) < _LEAST or Capability.INSPECT not in store.capabilities:
        why = f"; an abbreviated one needs {_LEAST} characters" if len(part) < _LEAST else ""
        raise FailedError(f"no task has the id {text!r}{why}")
    found, complete = await _abbreviated(store, part)
    if len(found) > 1:
        raise FailedError(f"{text!r} could be {', '.join(found[:_NAMED])}{', …' if len(found) > _NAMED else ''}")
    task = await store.get_task(found[0]) if found else None
    if task is None:
        among = "" if complete else f" among the newest {_LOOKED_THROUGH:,}: give all of it"
        raise FailedError(f"no task has an id that begins or ends with {text!r}{among}")
    return task


async def _abbreviated(store: Backend, part: str) -> tuple[list[str], bool]:
    """Return the ids that begin or end with `part`, and whether all tasks were looked at."""
    found: list[str] = []
    after = None
    for _ in range(_LOOKED_THROUGH // _PAGE):
        page = await store.list_tasks(TaskFilter(after=after), _PAGE)
        found += [task.id for task in page if task.id.lower().startswith(part) or task.id.lower().endswith(part)]
        if len(page) < _PAGE:
            return found, True
        after = page[-1].id
    return found, False


async def matching_ids(store: Backend, chosen: Wanted, phases: Sequence[Phase]) -> list[str]:
    """Return the ids of all tasks that fit; `phases` are meant where the filters name none."""
    found: list[str] = []
    for phase in [chosen.phase] if chosen.phase else phases:
        after = None
        while True:
            page = await store.list_tasks(chosen.filter(phase, after), _PAGE)
            found += [task.id for task in page]
            if len(page) < _PAGE:
                break
            after = page[-1].id
    return found
