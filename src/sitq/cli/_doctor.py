"""`sitq doctor`: what the live store really gives, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import typer
from rich.table import Table
from rich.text import Text

from sitq.backends.base import Backend, Capability
from sitq.cli._command import EXIT_FAILED, BackendOption, JsonOption, console, print_json, run
from sitq.cli._health import concerns
from sitq.cli._status import finding_style
from sitq.cli._text import printable
from sitq.core import Finding, QueueCounts, Verdict, WorkerInfo, utcnow
from sitq.queue import TaskQueue

__all__ = ["doctor", "general_findings"]

_CLOCK_SLACK = timedelta(seconds=5)


def doctor(backend: BackendOption = None, as_json: JsonOption = False) -> None:
    """Examine the live store, and say what to do about it.

    Example: sitq doctor --backend sqlite:///tasks.db

    Exits with 1 when something is bad.
    """

    async def work(_queue: TaskQueue, store: Backend) -> list[Finding]:
        queues, workers = None, None
        if Capability.INSPECT in store.capabilities:
            queues, workers = await store.count_tasks(), await store.list_workers()
        return [*await store.diagnose(), *general_findings(store.capabilities, queues, workers, utcnow())]

    findings = run(backend, work)
    worst = [finding for finding in findings if finding.verdict == Verdict.BAD]
    if as_json:
        print_json({"ok": not worst, "findings": findings})
    else:
        _print(findings)
    if worst:
        raise typer.Exit(EXIT_FAILED)


def general_findings(
    capabilities: Capability,
    queues: Sequence[QueueCounts] | None,
    workers: Sequence[WorkerInfo] | None,
    now: datetime,
) -> list[Finding]:
    """Return what can be said of any store. `queues` and `workers` are None where it cannot be inspected."""
    lacks = ", ".join(str(flag.name) for flag in Capability if flag not in capabilities)
    found = [
        Finding(
            name="capabilities",
            value=f"all but {lacks}" if lacks else "all",
            verdict=Verdict.WARN if lacks else Verdict.OK,
            advice="queue and worker do without what they can, and refuse the rest by name" if lacks else "",
        )
    ]
    if queues is None or workers is None:
        return found
    found.append(_workers(workers))
    found += [_clock(worker, now) for worker in workers if worker.started_at - now > _CLOCK_SLACK]
    return found + concerns(queues, workers, now)


def _workers(workers: Sequence[WorkerInfo]) -> Finding:
    if not workers:
        return Finding(
            name="workers",
            value="none alive",
            verdict=Verdict.WARN,
            advice="start one: sitq worker app:queue",
            number=0,
        )
    hosts = len({worker.host for worker in workers})
    where = f" on {hosts} hosts" if hosts > 1 else ""
    return Finding(name="workers", value=f"{len(workers)} alive{where}", number=len(workers))


def _clock(worker: WorkerInfo, now: datetime) -> Finding:
    ahead = (worker.started_at - now).total_seconds()
    return Finding(
        name="clock",
        value=f"worker {worker.id} was started {ahead:.0f} s in the future",
        verdict=Verdict.BAD,
        advice="a clock was set back, or two hosts disagree: synchronize them (NTP), since due times use wall time",
        number=ahead,
    )


def _print(findings: Sequence[Finding]) -> None:
    out = console()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, style="bold", overflow="ellipsis", max_width=24)
    grid.add_column(overflow="fold")
    for finding in findings:
        value = Text(printable(finding.value))
        if finding.advice and finding.verdict != Verdict.OK:
            value.append(f"\n→ {printable(finding.advice)}", "cyan")
        grid.add_row(Text(finding.verdict, finding_style(finding.verdict)), printable(finding.name), value)
    out.print(grid)
