"""`sitq tasks` and `sitq show`: what is there, and one task in full."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sitq.backends.base import Backend
from sitq.cli._command import BackendOption, JsonOption, console, print_json, run
from sitq.cli._find import NameOption, PhaseOption, QueueOption, SinceOption, find_task, wanted
from sitq.cli._text import age, brief, clock_time, duration, printable, short_id
from sitq.core import Phase, Result, Task, TaskOptions, phase_of, utcnow
from sitq.exceptions import SerializationError
from sitq.queue import TaskQueue

__all__ = ["phase_style", "show", "task_data", "tasks"]

_WIDE = 120
_QUEUE, _NAME, _REMARK = 2, 3, 6  # columns
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
    """Make the list: whole ids and ages where there is room; name and remark share what the rest leaves."""
    wide = out.width >= _WIDE
    headers = ["id", "phase", "queue", "name", "runs", "enqueued" if wide else "age", ""]
    rows = [_row(task, wide, now) for task in page]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    widths[_QUEUE] = min(widths[_QUEUE], 16 if wide else 10)
    left = out.width - sum(widths) - 2 * (len(widths) - 1) + widths[_NAME] + widths[_REMARK]
    widths[_REMARK] = min(widths[_REMARK], max(left - widths[_NAME], left * 2 // 5))
    widths[_NAME] = min(widths[_NAME], left - widths[_REMARK])
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header, width in zip(headers, widths, strict=True):
        is_number = header in ("runs", "enqueued", "age")
        justify: Literal["right", "left"] = "right" if is_number else "left"
        table.add_column(header, width=width, no_wrap=True, overflow="ellipsis", justify=justify)
    for task, (task_id, phase, *middle, remark) in zip(page, rows, strict=True):
        table.add_row(task_id, Text(phase, phase_style(phase_of(task, now))), *middle, Text(remark, "dim"))
    return table


def _row(task: Task, wide: bool, now: datetime) -> list[str]:
    phase = phase_of(task, now)
    return [
        task.id if wide else short_id(task.id),
        phase.value,
        printable((task.options or TaskOptions()).queue),
        printable(task.name),
        str(task.attempt),
        age(task.created_at, now) if wide else brief((now - task.created_at).total_seconds()),
        printable(_remark(task, phase, now)),
    ]


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
    return (
        f"{task.crashes} crash{'' if task.crashes == 1 else 'es'}" if task.crashes and phase != Phase.COMPLETED else ""
    )


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
    """Show one task: attempts, times, progress, why it failed.

    Example: sitq show 9f3c21ab --backend app:queue
    """

    async def work(queue: TaskQueue, store: Backend) -> tuple[Task, Result | None, dict[str, Any]]:
        task = await find_task(store, task_id)
        result = await store.wait_for_result(task.id, 0.0)  # as stored: `get_result` would decode the value
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
        _print_lines(console(), {name: _shown(value) for name, value in decoded.items()})


def _decoded(queue: TaskQueue, task: Task, result: Result | None) -> dict[str, Any]:
    """Return arguments and value; where they cannot be decoded here, why."""
    data: dict[str, Any] = {}
    try:
        if task.payload is not None:
            call = queue.serializer.decode_call(task.id, task.name, task.payload)
            data |= {"args": list(call.args), "kwargs": call.kwargs}
    except SerializationError as error:
        data["args"] = _Undecodable(f"cannot be decoded here: {error}")
    try:
        if result is not None and result.status == "success":
            data["value"] = queue.deserialize_result(result)
    except SerializationError as error:
        data["value"] = _Undecodable(f"cannot be decoded here: {error}")
    return data


class _Undecodable(str):
    """Why there is no value to show."""

    __slots__ = ()


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, _Undecodable) else repr(value)


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
        "phase": Text(phase, phase_style(phase)).append(
            f" ({printable(task.reason)})" if task.reason else "", "default"
        ),
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
        out.print(Text(printable(result.traceback.rstrip())), soft_wrap=True)


def _result_lines(result: Result, now: datetime) -> dict[str, str | Text]:
    lines: dict[str, str | Text] = {}
    if result.started_at is not None:
        lines["started"] = _moment(result.started_at, now)
    if result.finished_at is not None:
        lines["finished"] = _moment(result.finished_at, now)
        if result.started_at is not None:
            lines["took"] = duration((result.finished_at - result.started_at).total_seconds())
    if result.error:
        lines["error"] = Text(printable(result.error), "red")
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
        grid.add_row(name, value if isinstance(value, Text) else Text(printable(str(value))))
    out.print(grid)
