"""`sitq tasks` and `sitq show`: what is there, and one task in full."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sitq.backends.base import Backend
from sitq.cli._command import BackendOption, JsonOption, console, print_json, run
from sitq.cli._find import NameOption, PhaseOption, QueueOption, SinceOption, find_task, wanted
from sitq.cli._text import age, clock_time, duration, short_id
from sitq.core import Phase, Result, Task, TaskOptions, phase_of, utcnow
from sitq.exceptions import SerializationError
from sitq.queue import TaskQueue

__all__ = ["phase_style", "show", "task_data", "tasks"]

_WIDE = 120
_STYLES = {
    Phase.RUNNING: "cyan", Phase.COMPLETED: "green", Phase.FAILED: "red", Phase.QUARANTINED: "bold red",
    Phase.STALLED: "yellow", Phase.RETRYING: "yellow", Phase.EXPIRED: "yellow", Phase.CANCELLED: "dim",
}  # fmt: skip
_AfterOption = Annotated[str | None, typer.Option(metavar="ID", help="The page after this task.")]


def phase_style(phase: Phase) -> str:
    """Return the style a phase is printed in."""
    return _STYLES.get(phase, "")


def task_data(task: Task, now: datetime) -> dict[str, Any]:
    """Return a task as plain data, without its call."""
    options = task.options or TaskOptions()
    return {
        "id": task.id,
        "name": task.name,
        "phase": phase_of(task, now),
        "status": task.status,
        "reason": task.reason,
        "queue": options.queue,
        "priority": options.priority,
        "attempt": task.attempt,
        "crashes": task.crashes,
        "solo_crashes": task.solo_crashes,
        "created_at": task.created_at,
        "eta": task.eta,
        "expires_at": options.expires_at,
        "worker_id": task.worker_id,
        "lease_expires_at": task.lease_expires_at,
        "cancel_requested": task.cancel_requested,
        "fence": task.fence,
        "progress": task.progress,
    }


def tasks(  # noqa: PLR0917 (typer reads the options from it)
    backend: BackendOption = None,
    phase: PhaseOption = None,
    queue: QueueOption = None,
    name: NameOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")] = 20,
    after: _AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """List tasks, newest first.

    Example: sitq tasks --phase failed --queue mail --since 2h
    """
    chosen = wanted(phase, queue, name, since)

    async def work(_queue: TaskQueue, store: Backend) -> list[Task]:
        last = None if after is None else (await find_task(store, after)).id
        return await store.list_tasks(chosen.filter(after=last), limit + 1)

    found = run(backend, work)
    page, more = found[:limit], len(found) > limit
    now = utcnow()
    if as_json:
        print_json({"tasks": [task_data(task, now) for task in page], "next": page[-1].id if more else None})
        return
    out = console()
    if not page:
        out.print(f"There are no {chosen.words()}.", style="dim")
        return
    out.print(_table(page, out, now))
    if more:
        out.print(f"More: the same with --after {page[-1].id}", style="dim", soft_wrap=True)


def _table(page: list[Task], out: Console, now: datetime) -> Table:
    wide = out.width >= _WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("id", no_wrap=True, min_width=36 if wide else 9)
    table.add_column("phase", no_wrap=True)
    table.add_column("queue", no_wrap=True, overflow="ellipsis", max_width=16)
    table.add_column("name", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("runs", justify="right", no_wrap=True)
    table.add_column("enqueued", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=44 if wide else 18)
    for task in page:
        phase = phase_of(task, now)
        table.add_row(
            task.id if wide else short_id(task.id),
            Text(phase, phase_style(phase)),
            Text((task.options or TaskOptions()).queue),
            Text(task.name),
            str(task.attempt),
            age(task.created_at, now),
            Text(_remark(task, phase, now), "dim"),
        )
    return table


def _remark(task: Task, phase: Phase, now: datetime) -> str:
    """Say what is special about a task, in a few words."""
    if phase in (Phase.SCHEDULED, Phase.RETRYING):
        return f"{age(task.eta, now)}{f', {task.reason}' if task.reason else ''}"
    if phase == Phase.RUNNING and task.cancel_requested:
        return "asked to stop"
    if phase == Phase.RUNNING and task.progress is not None:
        return _plain(task.progress)
    if phase == Phase.FAILED and task.reason != "error":
        return task.reason or ""
    return f"{task.crashes} crashes" if task.crashes and phase != Phase.COMPLETED else ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)


# --- one task ---------------------------------------------------------------------------------------------------------


def show(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The id, or the beginning or end of it.")],
    backend: BackendOption = None,
    show_args: Annotated[
        bool, typer.Option("--show-args", help="Arguments and value, too: decoding them may run code.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one task: its call, attempts, times, progress, and why it failed.

    Example: sitq show 9f3c21ab --backend app:queue
    """

    async def work(queue: TaskQueue, store: Backend) -> tuple[Task, Result | None, dict[str, Any]]:
        task = await find_task(store, task_id)
        result = await store.get_result(task.id)
        return task, result, _decoded(queue, task, result) if show_args else {}

    task, result, decoded = run(backend, work)
    now = utcnow()
    if as_json:
        plain_result = None if result is None else replace(result, payload=None, value=None)
        data = {**task_data(task, now), "options": task.options or TaskOptions(), "result": _result_data(plain_result)}
        print_json(data | ({"call": decoded} if show_args else {}))
        return
    _print_task(console(), task, result, now)
    if show_args:
        _print_lines(console(), {name: repr(value) for name, value in decoded.items()})


def _decoded(queue: TaskQueue, task: Task, result: Result | None) -> dict[str, Any]:
    """Return arguments and value; where they cannot be decoded here, why."""
    data: dict[str, Any] = {}
    try:
        if task.payload is not None:
            call = queue.serializer.decode_call(task.id, task.name, task.payload)
            data |= {"args": list(call.args), "kwargs": call.kwargs}
    except SerializationError as error:
        data["args"] = f"cannot be decoded here: {error}"
    try:
        if result is not None and result.status == "success":
            data["value"] = queue.deserialize_result(result)
    except SerializationError as error:
        data["value"] = f"cannot be decoded here: {error}"
    return data


def _result_data(result: Result | None) -> dict[str, Any] | None:
    if result is None:
        return None
    names = ("status", "reason", "error", "traceback", "attempts", "enqueued_at", "started_at", "finished_at")
    return {name: getattr(result, name) for name in names}


def _print_task(out: Console, task: Task, result: Result | None, now: datetime) -> None:
    phase, options = phase_of(task, now), task.options or TaskOptions()
    lines: dict[str, str | Text] = {
        "task": Text(task.id, "bold"),
        "name": task.name,
        "phase": Text(phase, phase_style(phase)).append(f" ({task.reason})" if task.reason else "", "default"),
        "queue": f"{options.queue}, priority {options.priority}",
        "attempts": f"{max(task.attempt, result.attempts if result else 0)}, crashes {task.crashes}",
        "enqueued": _moment(task.created_at, now),
    }
    if task.eta is not None and task.status == "queued":
        lines["due"] = _moment(task.eta, now)
    if task.worker_id:
        lines["worker"] = f"{task.worker_id}, lease ends {age(task.lease_expires_at, now)}"
    if task.cancel_requested:
        lines["cancel"] = "requested"
    if task.progress is not None:
        lines["progress"] = _plain(task.progress)
    if words := _option_words(options):
        lines["options"] = words
    if result is not None:
        lines |= _result_lines(result, now)
    _print_lines(out, lines)
    if result is not None and result.traceback:
        out.print()
        out.print(Text(result.traceback.rstrip()), soft_wrap=True)


def _result_lines(result: Result, now: datetime) -> dict[str, str | Text]:
    lines: dict[str, str | Text] = {}
    if result.started_at is not None:
        lines["started"] = _moment(result.started_at, now)
    if result.finished_at is not None:
        lines["finished"] = _moment(result.finished_at, now)
        if result.started_at is not None:
            lines["took"] = duration((result.finished_at - result.started_at).total_seconds())
    if result.error:
        lines["error"] = Text(result.error, "red")
    return lines


def _option_words(options: TaskOptions) -> str:
    words = {
        "expires": options.expires_at and clock_time(options.expires_at),
        "timeout": options.timeout and duration(options.timeout),
        "retry": options.retry and f"{options.retry.max_attempts} attempts",
        "unique": options.unique and repr(options.unique),
        "executor": options.executor if options.executor != "auto" else None,
        "retention": options.retention and duration(options.retention),
        "context": ", ".join(options.context) or None,
    }
    return ", ".join(f"{name} {value}" for name, value in words.items() if value is not None)


def _moment(moment: datetime, now: datetime) -> str:
    return f"{clock_time(moment)} ({age(moment, now)})"


def _print_lines(out: Console, lines: dict[str, Any]) -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in lines.items():
        grid.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    out.print(grid)
