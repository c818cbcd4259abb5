"""`sitq status`: queues and workers, once or live."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sitq.backends.base import Backend
from sitq.cli._command import BackendOption, JsonOption, console, print_json, run
from sitq.cli._health import concerns
from sitq.cli._text import age, brief, compact, duration, printable
from sitq.core import Finding, Phase, QueueCounts, TaskFilter, Verdict, WorkerInfo, utcnow
from sitq.queue import TaskQueue

__all__ = ["Snapshot", "finding_style", "render", "status", "take"]

_SHORT: Mapping[Phase, str] = {
    Phase.SCHEDULED: "sched", Phase.READY: "ready", Phase.RUNNING: "run", Phase.STALLED: "stall",
    Phase.RETRYING: "retry", Phase.COMPLETED: "done", Phase.FAILED: "fail", Phase.CANCELLED: "canc",
    Phase.EXPIRED: "exp", Phase.QUARANTINED: "quar",
}  # fmt: skip
_STYLES: Mapping[Phase, str] = {
    Phase.RUNNING: "cyan", Phase.COMPLETED: "green", Phase.FAILED: "red", Phase.QUARANTINED: "bold red",
    Phase.STALLED: "yellow", Phase.RETRYING: "yellow",
}  # fmt: skip
_ALWAYS = (Phase.READY, Phase.RUNNING, Phase.COMPLETED, Phase.FAILED)
_RUNNING_SHOWN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A store at one moment."""

    now: datetime
    findings: Sequence[Finding]
    queues: Sequence[QueueCounts]
    workers: Sequence[WorkerInfo]
    running: Mapping[str, int]

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "time": self.now,
            "store": {finding.name: _value(finding) for finding in self.findings if finding.name in _SHOWN},
            "queues": [
                {
                    "queue": queue.queue,
                    "paused": queue.paused,
                    "phases": {phase.value: queue.phases.get(phase, 0) for phase in Phase},
                    "oldest_ready": queue.oldest_ready,
                    "oldest_ready_seconds": _waited(queue, self.now),
                }
                for queue in self.queues
            ],
            "workers": [
                {
                    "id": worker.id,
                    "host": worker.host,
                    "pid": worker.pid,
                    "queues": worker.queues,
                    "started_at": worker.started_at,
                    "seen_at": worker.seen_at,
                    "running": self.running.get(worker.id, 0),
                }
                for worker in self.workers
            ],
            "concerns": concerns(self.queues, self.workers, self.now),
        }


_SHOWN = ("store", "durability", "file size", "log size")


async def take(store: Backend) -> Snapshot:
    """Look at the store."""
    queues = await store.count_tasks()
    running = await store.list_tasks(TaskFilter(phase=Phase.RUNNING), _RUNNING_SHOWN)
    return Snapshot(
        now=utcnow(),
        findings=await store.diagnose(),
        queues=queues,
        workers=await store.list_workers(),
        running=Counter(task.worker_id or "" for task in running),
    )


def render(snapshot: Snapshot, width: int) -> RenderableType:
    """Return what people see."""
    parts: list[RenderableType] = [_header(snapshot)]
    parts.append(_queue_table(snapshot, width) if snapshot.queues else Text("No tasks yet.", "dim"))
    parts.append(_worker_table(snapshot) if snapshot.workers else Text("No worker is alive.", "dim"))
    for finding in concerns(snapshot.queues, snapshot.workers, snapshot.now):
        style = finding_style(finding.verdict)
        parts.append(
            Text.assemble(
                ("! ", style),
                (printable(finding.name), "bold"),
                f": {printable(finding.value)} - {printable(finding.advice)}",
            )
        )
    return Group(*(part for one in parts for part in (one, Text())))


def _header(snapshot: Snapshot) -> Text:
    known = {finding.name: finding for finding in snapshot.findings if finding.name in _SHOWN}
    line = Text(known["store"].value if "store" in known else "", "bold")
    if "durability" in known:
        line.append(f" · {known['durability'].value.partition(':')[0]}", "default")
    for name in ("file size", "log size"):
        if name in known:
            label = "" if name == "file size" else "log "
            line.append(f" · {label}{known[name].value}", finding_style(known[name].verdict, "default"))
    return line


def _queue_table(snapshot: Snapshot, width: int) -> Table:
    """Make the table of queues by phases: whole words where they fit, and no columns of nothing but zeros."""
    used = {phase for queue in snapshot.queues for phase, number in queue.phases.items() if number}
    phases = [phase for phase in Phase if phase in used or phase in _ALWAYS]
    names = min(16, max(len(queue.queue) + 9 * queue.paused for queue in snapshot.queues))
    wide = _left_for_names(snapshot, phases, True, width) >= names
    left = _left_for_names(snapshot, phases, wide, width)
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")
    table.add_column("queue", no_wrap=True, overflow="ellipsis", max_width=max(left, 8))
    for header in _queue_headers(phases, wide):
        table.add_column(header, justify="right", no_wrap=True)
    for queue in snapshot.queues:
        name = Text(printable(queue.queue)).append(" (paused)" if queue.paused else "", "yellow")
        table.add_row(name, *_queue_row(queue, phases, wide, snapshot.now))
    return table


def _left_for_names(snapshot: Snapshot, phases: Sequence[Phase], wide: bool, width: int) -> int:
    rows = [_queue_row(queue, phases, wide, snapshot.now) for queue in snapshot.queues]
    columns = zip(_queue_headers(phases, wide), *rows, strict=True)
    return width - sum((2 if wide else 1) + max(map(len, column)) for column in columns)


def _queue_headers(phases: Sequence[Phase], wide: bool) -> list[str]:
    return [phase.value if wide else _SHORT[phase] for phase in phases] + ["waiting" if wide else "wait"]


def _queue_row(queue: QueueCounts, phases: Sequence[Phase], wide: bool, now: datetime) -> list[Text]:
    row = [_number(queue.phases.get(phase, 0), phase, wide) for phase in phases]
    waited = _waited(queue, now)
    return [*row, Text("-" if waited is None else duration(waited) if wide else brief(waited))]


def _number(number: int, phase: Phase, wide: bool) -> Text:
    return Text(f"{number:,}" if wide else compact(number), _STYLES.get(phase, "") if number else "dim")


def _worker_table(snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("worker", no_wrap=True, overflow="ellipsis")
    table.add_column("queues", overflow="ellipsis", no_wrap=True)
    for name in ("running", "started", "seen"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in snapshot.workers:
        table.add_row(
            printable(worker.id),
            "all" if worker.queues is None else printable(", ".join(worker.queues)),
            f"{snapshot.running.get(worker.id, 0):,}",
            age(worker.started_at, snapshot.now),
            age(worker.seen_at, snapshot.now),
        )
    return table


def _waited(queue: QueueCounts, now: datetime) -> float | None:
    return None if queue.oldest_ready is None else max(0.0, (now - queue.oldest_ready).total_seconds())


def _value(finding: Finding) -> str | float:
    return finding.value if finding.number is None else finding.number


def finding_style(verdict: Verdict, fine: str = "green") -> str:
    """Return the style a verdict is printed in."""
    return {Verdict.OK: fine, Verdict.WARN: "yellow", Verdict.BAD: "bold red"}[verdict]


def status(
    backend: BackendOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking, until Ctrl+C.")] = False,
    interval: Annotated[float, typer.Option(metavar="S", min=0.05, help="Seconds between looks.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show queues, phases, workers and the store.

    Example: sitq status --backend sqlite:///tasks.db --watch
    """

    async def work(_queue: TaskQueue, store: Backend) -> None:
        if not watch:
            _show(await take(store), as_json)
        elif as_json:
            while True:
                print_json((await take(store)).as_data(), indent=None)
                await asyncio.sleep(interval)
        else:
            await _live(store, interval)

    try:
        run(backend, work)
    except KeyboardInterrupt:
        raise typer.Exit from None  # that is how a watch ends


def _show(snapshot: Snapshot, as_json: bool) -> None:
    if as_json:
        print_json(snapshot.as_data())
        return
    out = console()
    out.print(render(snapshot, out.width), end="")


async def _live(store: Backend, interval: float) -> None:
    out: Console = console()
    with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
        while True:
            live.update(render(await take(store), out.width), refresh=True)
            await asyncio.sleep(interval)
