"""The workers of one process: which of them there are, and how they run and stop together."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sitq.backends.base import Capability
from sitq.cli._health import unserved
from sitq.cli._target import TargetError
from sitq.core import Phase, WorkerInfo
from sitq.exceptions import BackendError
from sitq.queue import TaskQueue
from sitq.worker import Worker

__all__ = ["Share", "serve", "shares", "warn_of_unserved"]

logger = logging.getLogger("sitq")

_LOOK_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part: its queues (None: all), and how many tasks it runs at the same time."""

    queues: tuple[str, ...] | None
    concurrency: int


def shares(queues: str | None, concurrency: int) -> list[Share]:
    """Read `--queues`: `a,b` share `concurrency`; `c:2` has a worker of its own, so at most two of them run at once.

    A queue's cap is its own slots: nothing else can take them, and it takes none from the others. Raises `TargetError`.
    """
    if queues is None:
        return [Share(None, concurrency)]
    together: list[str] = []
    apart: dict[str, int] = {}
    for item in queues.split(","):
        name, colon, cap = item.strip().rpartition(":")
        if not colon:
            name, cap = cap, ""
        if not name or (colon and not (cap.isascii() and cap.isdigit() and int(cap) > 0)):
            raise TargetError(
                f"cannot read the queue {item!r} of --queues: write name or name:concurrency, as in a,b:2"
            )
        if name in together or name in apart:
            raise TargetError(f"the queue {name!r} is named twice in --queues")
        if colon:
            apart[name] = int(cap)
        else:
            together.append(name)
    first = [Share(tuple(together), concurrency)] if together else []
    return first + [Share((name,), cap) for name, cap in apart.items()]


async def serve(workers: Sequence[Worker], max_tasks: int | None = None, max_rss: int | None = None) -> None:
    """Run workers until SIGTERM or SIGINT, or until one reaches a limit; a second signal cuts the grace.

    One that cannot go on stops them all.
    """
    if len(workers) == 1:
        await workers[0].start(handle_signals=True, max_tasks=max_tasks, max_rss=max_rss)
        return
    loop = asyncio.get_running_loop()
    runs = [asyncio.create_task(worker.start(max_tasks=max_tasks, max_rss=max_rss)) for worker in workers]
    stops: set[asyncio.Task[None]] = set()

    def stop() -> None:
        stops.update(asyncio.create_task(worker.stop()) for worker in workers)

    for number in (signal.SIGTERM, signal.SIGINT):  # each worker's own handlers would replace the other's
        loop.add_signal_handler(number, stop)
    try:
        done, others = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
        if others:
            if any(run.exception() for run in done):
                stop()
            elif not stops:  # it retired, and so do the others, each in its own time
                for worker in workers:
                    worker._retire()
            done |= (await asyncio.wait(others))[0]
        await asyncio.gather(*stops)
        for run in done:
            run.result()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def warn_of_unserved(queue: TaskQueue, own: Sequence[Share], every: float = _LOOK_EVERY) -> None:
    """Say so when tasks wait in a queue that no worker serves, once for each queue until that is over."""
    warned: set[str] = set()
    while Capability.INSPECT in queue.backend.capabilities:
        with suppress(BackendError):
            warned = await _look(queue, own, warned)
        await asyncio.sleep(every)


async def _look(queue: TaskQueue, own: Sequence[Share], warned: set[str]) -> set[str]:
    mine = [WorkerInfo(id="", queues=share.queues) for share in own]  # may not have been heard of yet
    alone = unserved(await queue.backend.count_tasks(), [*mine, *await queue.backend.list_workers()])
    for counts in alone:
        ready = counts.phases[Phase.READY]
        if counts.queue not in warned:
            logger.warning(
                "%s ready in the queue %r, and no worker serves it: start one with --queues %s",
                "1 task is" if ready == 1 else f"{ready:,} tasks are",
                counts.queue,
                counts.queue,
                extra={"sitq": {"event": "unserved", "queue": counts.queue, "ready": ready}},
            )
    return {counts.queue for counts in alone}
