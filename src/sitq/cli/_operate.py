"""`sitq retry`, `cancel`, `pause`, `resume`, `purge`: an operator's hand on the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer

from sitq.backends.base import Backend, Capability
from sitq.cli._command import (
    EXIT_FAILED,
    BackendOption,
    JsonOption,
    YesOption,
    complain,
    confirmed,
    print_json,
    run,
    usage,
)
from sitq.cli._find import (
    NameOption,
    PhaseOption,
    QueueOption,
    SinceOption,
    Wanted,
    find_task,
    matching_ids,
    wanted,
)
from sitq.core import Cancelled, Phase, TaskFilter
from sitq.queue import TaskQueue

__all__ = ["cancel", "pause", "purge", "resume", "retry"]

_BATCH = 500
_NAMED = 10
_LIVE = (Phase.SCHEDULED, Phase.READY, Phase.RETRYING, Phase.RUNNING, Phase.STALLED)
_IDS = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids, or their beginnings or ends.")]
_QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]

Answers = dict[str, str]


def retry(  # noqa: PLR0917 (typer reads the options from it)
    ids: _IDS = None,
    backend: BackendOption = None,
    phase: PhaseOption = None,
    queue: QueueOption = None,
    name: NameOption = None,
    since: SinceOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run finished tasks again, by id or by filter.

    Filters without --phase mean the failed ones.

    Example: sitq retry --name app:send --since 2h
    """
    chosen = _by_ids_or_filters(ids, wanted(phase, queue, name, since))

    async def requeue(store: Backend, some: Sequence[str]) -> Answers:
        done = await store.requeue_tasks(some)
        return {task_id: "queued" if again else "left alone" for task_id, again in zip(some, done, strict=True)}

    async def work(_queue: TaskQueue, store: Backend) -> Answers:
        return await _apply(store, ids, chosen, (Phase.FAILED,), ask=_asking("Run again", yes), act=requeue)

    answers = run(backend, work)
    _report(answers, ("queued",), as_json, "it has not finished, or another task holds its unique key", bool(ids))


def cancel(  # noqa: PLR0917 (typer reads the options from it)
    ids: _IDS = None,
    backend: BackendOption = None,
    phase: PhaseOption = None,
    queue: QueueOption = None,
    name: NameOption = None,
    since: SinceOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cancel tasks, by id or by filter.

    Queued ones end at once, running ones are asked to stop.

    Example: sitq cancel --queue mail --phase scheduled
    """
    chosen = _by_ids_or_filters(ids, wanted(phase, queue, name, since))

    async def stop(store: Backend, some: Sequence[str]) -> Answers:
        return dict(zip(some, map(str, await store.cancel_tasks(some)), strict=True))

    async def work(_queue: TaskQueue, store: Backend) -> Answers:
        return await _apply(store, ids, chosen, _LIVE, ask=_asking("Cancel", yes), act=stop)

    answers = run(backend, work)
    _report(answers, (Cancelled.CANCELLED, Cancelled.REQUESTED), as_json, "it has finished", bool(ids))


def pause(queue: _QueueArgument, backend: BackendOption = None, as_json: JsonOption = False) -> None:
    """Stop handing out the tasks of a queue; running ones go on.

    Example: sitq pause mail --backend app:queue
    """
    _set_paused(queue, True, backend, as_json)


def resume(queue: _QueueArgument, backend: BackendOption = None, as_json: JsonOption = False) -> None:
    """Hand out the tasks of a paused queue again.

    Example: sitq resume mail --backend app:queue
    """
    _set_paused(queue, False, backend, as_json)


def purge(  # noqa: PLR0917 (typer reads the options from it)
    backend: BackendOption = None,
    phase: PhaseOption = None,
    queue: QueueOption = None,
    name: NameOption = None,
    since: SinceOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete finished tasks.

    Without filters those past their retention, with filters all that fit.

    Example: sitq purge --phase cancelled --queue mail
    """
    chosen = wanted(phase, queue, name, since)
    if chosen.phase in _LIVE:
        usage(f"{chosen.phase} tasks have not finished, so they cannot be purged: cancel them first")

    async def work(_queue: TaskQueue, store: Backend) -> int:
        if not chosen:
            return await _purge(store, None)
        confirmed(f"Delete all finished {chosen.words()}, with their results?", yes)
        return await _purge(store, chosen.filter())

    number = run(backend, work)
    if as_json:
        print_json({"purged": number})
    else:
        print(f"{_tasks(number)} purged")


async def _purge(store: Backend, which: TaskFilter | None) -> int:
    """Delete in batches that no worker notices."""
    total = 0
    while True:
        number = await store.purge(which, _BATCH)
        total += number
        if number < _BATCH:
            return total


def _set_paused(queue: str, paused: bool, backend: str | None, as_json: bool) -> None:
    async def work(_queue: TaskQueue, store: Backend) -> set[str] | None:
        known = await _known_queues(store)
        await store.pause_queue(queue, paused)
        return known

    known = run(backend, work)
    if as_json:
        print_json({"queue": queue, "paused": paused})
    else:
        print(f"queue {queue} is {'paused' if paused else 'served again'}")
    if known is not None and queue not in known:
        there = f"known are {', '.join(sorted(known))}" if known else "there is none yet"
        complain(f"no task and no worker knows the queue {queue!r}: {there}")


async def _known_queues(store: Backend) -> set[str] | None:
    """Return the queues that tasks and workers name; None where that cannot be asked."""
    if Capability.INSPECT not in store.capabilities:
        return None
    named = {name for worker in await store.list_workers() for name in worker.queues or ()}
    return named | {counts.queue for counts in await store.count_tasks()}


# --- by id, or by filter ----------------------------------------------------------------------------------------------


def _by_ids_or_filters(ids: Sequence[str] | None, chosen: Wanted) -> Wanted:
    if ids and chosen:
        usage("give ids or filters, not both")
    if not ids and not chosen:
        usage("which tasks? Give ids, or one of --phase, --queue, --name, --since")
    return chosen


def _asking(verb: str, yes: bool) -> Callable[[str], None]:
    return lambda what: confirmed(f"{verb} {what}?", yes)


async def _apply(
    store: Backend,
    ids: Sequence[str] | None,
    chosen: Wanted,
    phases: Sequence[Phase],
    *,
    ask: Callable[[str], None],
    act: Callable[[Backend, Sequence[str]], Awaitable[Answers]],
) -> Answers:
    """Act on what was named, or, after a question, on what fits."""
    if ids:
        found = list(dict.fromkeys([(await find_task(store, task_id)).id for task_id in ids]))
    else:
        found = await matching_ids(store, chosen, phases)
        if found:
            ask(chosen.words(len(found)))
    answers: Answers = {}
    for start in range(0, len(found), _BATCH):
        answers |= await act(store, found[start : start + _BATCH])
    return answers


def _report(answers: Answers, fine: Sequence[str], as_json: bool, why_not: str, named: bool) -> None:
    """Say how many were done, and name those that were not: a failure if the user had named them, too."""
    numbers = Counter(answers.values())
    others = [task_id for task_id, answer in answers.items() if answer not in fine]
    if as_json:
        tasks: list[dict[str, Any]] = [{"id": task_id, "answer": answer} for task_id, answer in answers.items()]
        print_json({"tasks": tasks, "counts": numbers})
    else:
        for answer in [answer for answer in fine if numbers[answer]] or fine[:1]:
            print(f"{_tasks(numbers[answer])} {'asked to stop' if answer == Cancelled.REQUESTED else answer}")
        for task_id in others[:_NAMED]:
            complain(f"{task_id} was left alone: {why_not}")
        if len(others) > _NAMED:
            complain(f"and {len(others) - _NAMED:,} more were left alone")
    if others and named:
        raise typer.Exit(EXIT_FAILED)


def _tasks(number: int) -> str:
    return f"{number:,} task{'' if number == 1 else 's'}"
