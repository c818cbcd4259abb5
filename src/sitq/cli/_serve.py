"""The workers of one process: which of them there are, and how they run and stop together."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sitq.backends.base import Capability
from sitq.cli._health import unserved
from sitq.cli._target import TargetError
from sitq.core import Phase, WorkerInfo
from sitq.exceptions import BackendError
from sitq.queue import TaskQueue
from sitq.worker import Worker

__all__ = ["Share", "ignore_signals", "serve", "shares", "stop_signals", "warn_of_unserved"]

logger = logging.getLogger("sitq")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY = 60.0  # seconds; but a store that keeps 2,000,000 tasks takes 1.3 to count them
_LOOK_SHARE = 0.002  # of the time, at most


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
    runs = [asyncio.create_task(worker.start(max_tasks=max_tasks, max_rss=max_rss)) for worker in workers]
    stops: set[asyncio.Task[None]] = set()

    def stop() -> None:
        if not stops:
            logger.info("stopping: what runs has %g s to finish; a second signal is fast", workers[0].grace)
        stops.update(asyncio.create_task(worker.stop()) for worker in workers)

    with stop_signals(stop):
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


@contextmanager
def stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on this event loop at each SIGTERM and SIGINT. After the block, for good, they do nothing.

    The loop's own handlers, and so `Worker.start(handle_signals=True)`, serve one worker only, and end before the
    process does: one signal too many would kill it on its way out, with an exit code that says so.
    """
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        ignore_signals()


def ignore_signals() -> None:
    """Let nothing disturb the process on its way out."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


async def warn_of_unserved(queue: TaskQueue, own: Sequence[Share], every: float = _LOOK_EVERY) -> None:
    """Say so when tasks wait in a queue that no worker serves, once for each queue until that is over."""
    warned: set[str] = set()
    while Capability.INSPECT in queue.backend.capabilities:
        begin = time.monotonic()
        with suppress(BackendError):
            warned = await _look(queue, own, warned)
        await asyncio.sleep(max(every, (time.monotonic() - begin) / _LOOK_SHARE))


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
