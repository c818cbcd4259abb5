"""`sitq worker`."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

import sitq
from sitq._supervisor import is_supervised, join_supervisor, supervise
from sitq.cli._command import EXIT_FAILED, console, one_of, reporting, usage
from sitq.cli._logs import level_number, log_tasks, set_up_logging
from sitq.cli._reload import run_reloading, worker_command
from sitq.cli._serve import Share, ignore_signals, serve, shares, warn_of_unserved
from sitq.cli._target import TargetError, load_queue
from sitq.core import Finding
from sitq.queue import TaskQueue
from sitq.worker import Worker

__all__ = ["LogFormat", "LogLevel", "worker"]

logger = logging.getLogger("sitq")


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """What is logged: `info` has a line for each task."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one worker process is told."""

    target: str
    shares: Sequence[Share]
    grace: float
    lease: float
    poll_interval: float | None
    log_format: LogFormat | None
    log_level: LogLevel
    uvloop: bool
    max_tasks: int | None = None
    max_rss: int | None = None  # bytes


_App = Annotated[
    str | None,
    typer.Argument(
        metavar="APP", envvar="SITQ_BACKEND", show_envvar=False, help="app:queue, a factory, or a URL ($SITQ_BACKEND)."
    ),
]
_Concurrency = Annotated[
    int, typer.Option("--concurrency", "-c", metavar="N", min=1, help="Tasks at once (a process).")
]
_Processes = Annotated[int, typer.Option("--processes", "-p", metavar="N", min=1, help="Supervised processes.")]
_Queues = Annotated[
    str | None, typer.Option("--queues", "-q", metavar="A,B:N", help="Only these; :N so many of it at once.")
]
_Grace = Annotated[float, typer.Option(metavar="S", min=0, help="Seconds a stop waits.")]
_Lease = Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds to a takeover.")]
_Poll = Annotated[float | None, typer.Option(metavar="S", min=0.001, help="Seconds between looks when idle.")]
_MaxTasks = Annotated[int | None, typer.Option(metavar="N", min=1, help="Replace a process after N tasks.")]
_MaxRss = Annotated[int | None, typer.Option(metavar="MIB", min=1, help="Replace a process that grew larger.")]
_Reload = Annotated[bool, typer.Option("--reload", help="Restart when code changes (development).")]
_Format = Annotated[
    LogFormat | None, typer.Option(help="Log lines (stderr).", metavar="text|json", parser=one_of(LogFormat))
]
_Level = Annotated[LogLevel, typer.Option(metavar="LEVEL", help="info: a line for each task.", parser=one_of(LogLevel))]
_Uvloop = Annotated[bool, typer.Option("--uvloop", help="Run on uvloop.")]


def worker(  # noqa: PLR0917 (typer reads the command line's options from it)
    target: _App = None,
    concurrency: _Concurrency = 10,
    processes: _Processes = 1,
    queues: _Queues = None,
    grace: _Grace = 30.0,
    lease: _Lease = 30.0,
    poll_interval: _Poll = None,
    max_tasks: _MaxTasks = None,
    max_rss: _MaxRss = None,
    reload: _Reload = False,
    log_format: _Format = None,
    log_level: _Level = LogLevel.INFO,
    uvloop: _Uvloop = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --log-format json.")] = False,
) -> None:
    """Run the tasks of a queue until SIGTERM or Ctrl+C.

    Example: sitq worker app:queue --concurrency 20 --queues mail:2,default
    """
    if not target:
        usage("which queue? Write sitq worker app:queue, or set SITQ_BACKEND")
    with reporting():
        settings = Settings(
            target=target,
            shares=shares(queues, concurrency),
            grace=grace,
            lease=lease,
            poll_interval=poll_interval,
            log_format=LogFormat.JSON if as_json else log_format,
            log_level=log_level,
            uvloop=uvloop,
            max_tasks=max_tasks,
            max_rss=None if max_rss is None else max_rss * 2**20,
        )
        if reload:
            raise typer.Exit(run_reloading(worker_command(sys.argv[1:]), Path.cwd()))
        if (processes > 1 or max_tasks or max_rss) and not is_supervised():
            raise typer.Exit(run_supervised(settings, processes))
        run_worker(settings)


def run_supervised(settings: Settings, processes: int) -> int:
    """Run this same command in processes that are replaced when they end; return the exit code."""
    loop_factory(settings.uvloop)
    queue = load_queue(settings.target)  # whatever is wrong is said here, once
    set_up_logging(settings.log_format, settings.log_level)
    announce(settings, asyncio.run(_diagnose(queue)), processes)
    try:
        return supervise(
            worker_command(sys.argv[1:]),
            processes,
            lambda: queue.backend,
            workers=len(settings.shares),
            stop_within=settings.grace + settings.lease + 15.0,
        )
    finally:
        ignore_signals()


async def _diagnose(queue: TaskQueue) -> Sequence[Finding]:
    async with queue:
        return await queue.backend.diagnose()


def run_worker(settings: Settings) -> None:
    """Load the queue and work in this process until a signal."""
    factory = loop_factory(settings.uvloop)
    queue = load_queue(settings.target)
    set_up_logging(settings.log_format, settings.log_level)
    log_tasks(queue)
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_work(queue, settings))
    except KeyboardInterrupt:  # before the worker has its own handler
        raise typer.Exit(EXIT_FAILED) from None


async def _work(queue: TaskQueue, settings: Settings) -> None:
    async with queue:
        workers = [
            Worker(
                queue,
                max_concurrency=share.concurrency,
                poll_interval=settings.poll_interval,
                queues=share.queues,
                lease=settings.lease,
                grace=settings.grace,
            )
            for share in settings.shares
        ]
        if is_supervised():
            join_supervisor(queue, workers)
        else:
            announce(settings, await queue.backend.diagnose())
        watch = asyncio.create_task(warn_of_unserved(queue, settings.shares))
        try:
            await serve(workers, settings.max_tasks, settings.max_rss)
        finally:
            watch.cancel()
            await asyncio.wait([watch])


def announce(settings: Settings, findings: Sequence[Finding], processes: int = 1) -> None:
    """Say what is about to run, on what."""
    known = {finding.name: finding.value for finding in findings}
    queues = ", ".join(_share_words(share) for share in settings.shares)
    if settings.log_format == LogFormat.JSON:
        fields = {"event": "starting", "version": sitq.__version__, "app": settings.target, "queues": queues} | known
        logger.info("starting", extra={"sitq": fields})
    if settings.log_format == LogFormat.JSON or level_number(settings.log_level) > logging.INFO:
        return
    lines = {
        "app": settings.target,
        "store": known.get("store", ""),
        "durability": known.get("durability", ""),
        "queues": queues,
        "processes": f"{processes}, each replaced when it ends" if processes > 1 else "",
        "stop": f"Ctrl+C or SIGTERM; tasks then have {settings.grace:g} s to finish, a second one is fast",
    }
    banner = Text.assemble(("sitq ", "bold cyan"), (sitq.__version__, "bold"))
    for name, value in lines.items():
        if value:
            banner.append(f"\n  {name:<11}", "dim").append(value)
    console(stderr=True).print(banner, soft_wrap=True)


def _share_words(share: Share) -> str:
    return f"{'all' if share.queues is None else ' + '.join(share.queues)} ({share.concurrency} at once)"


def loop_factory(uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop: asyncio's own (None), or uvloop."""
    if not uvloop:
        return None
    try:
        module = importlib.import_module("uvloop")
    except ModuleNotFoundError:
        raise TargetError('uvloop is not installed: pip install "sitq-queue[uvloop]"') from None
    factory: Any = module.new_event_loop
    return factory  # type: ignore[no-any-return]
