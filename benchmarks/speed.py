"""Enqueue and drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import processes, raw
from benchmarks.calls import echo
from benchmarks.figures import Figure, Scale, paired
from benchmarks.worker import make_store, queue_of
from sitq import TaskQueue

__all__ = ["Files", "Way", "by_coroutines", "drain", "enqueue", "enqueue_rate", "fill", "in_bulk"]


class Files:
    """Fresh stores in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        folder.mkdir(exist_ok=True)

    def fresh(self) -> str:
        """Return the path of a new, empty store; the one before is deleted."""
        for old in self.folder.glob(f"{self._count}.db*"):
            old.unlink()
        self._count += 1
        path = str(self.folder / f"{self._count}.db")
        make_store(path)
        return path


def fill(store: str, count: int, **options: Any) -> None:
    """Enqueue no-op calls."""

    async def go() -> None:
        async with queue_of(store) as queue:
            await queue.options(**options).enqueue_many(echo, [(number,) for number in range(count)])

    asyncio.run(go())


# --- enqueue ----------------------------------------------------------------------------------------------------------

Way = Callable[[TaskQueue, int], Coroutine[Any, Any, None]]


async def _one_at_a_time(queue: TaskQueue, count: int) -> None:
    for number in range(count):
        await queue.enqueue(echo, number)


async def by_coroutines(queue: TaskQueue, count: int) -> None:
    """Enqueue from 100 coroutines, each one task at a time."""
    await asyncio.gather(*(_one_at_a_time(queue, count // 100) for _ in range(100)))


async def in_bulk(queue: TaskQueue, count: int) -> None:
    """Enqueue all in one call."""
    await queue.enqueue_many(echo, [(number,) for number in range(count)])


def enqueue_rate(store: str, way: Way, count: int) -> float:
    """Return how many tasks a second are enqueued."""

    async def go() -> float:
        async with queue_of(store) as queue:
            await queue.enqueue(echo, 0)
            begin = time.perf_counter()
            await way(queue, count)
            return count / (time.perf_counter() - begin)

    return asyncio.run(go())


def enqueue(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure enqueue in its three ways, each beside raw inserts with as many rows to an fsync."""
    ways: list[tuple[str, Way, int, int, str]] = [
        ("enqueue, one at a time", _one_at_a_time, 1, scale.tasks // 10, "0.5 of raw"),
        ("enqueue, 100 coroutines", by_coroutines, raw.BATCH, scale.tasks, ""),
        ("enqueue, bulk", in_bulk, raw.BATCH, scale.tasks, "0.5 of raw"),
        ("enqueue, bulk", in_bulk, 1000, scale.tasks, ""),
    ]
    for name, way, batch, count, wanted in ways:
        rows_of = partial(raw.rows, count)

        def limit(batch: int = batch, count: int = count, rows_of: Callable[[], Any] = rows_of) -> float:
            return count / raw.insert(files.fresh(), rows_of(), batch)

        def ours(way: Way = way, count: int = count) -> float:
            return enqueue_rate(files.fresh(), way, count)

        yield paired(name, "tasks/s", scale, ours, limit, limit_name=f"raw, {batch} to a commit", wanted=wanted)


# --- drain ------------------------------------------------------------------------------------------------------------


def drain_rate(files: Files, scale: Scale, *, count: int = 1, concurrency: int = 10, uvloop: bool = False) -> float:
    """Return how many tasks a second worker processes do."""
    path = files.fresh()
    fill(path, scale.tasks)
    with processes.workers(path, count, concurrency, uvloop=uvloop) as started:
        return scale.tasks / processes.drained_in(path, started)


def raw_drain_rate(files: Files, scale: Scale) -> float:
    """Return how many tasks a second the store could do."""
    path = files.fresh()
    fill(path, scale.tasks)
    done, seconds = raw.drain(path)
    return done / seconds


def drain(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure how fast a full queue becomes empty, results stored."""
    limit = partial(raw_drain_rate, files, scale)
    for concurrency in (10, 100):
        ours = partial(drain_rate, files, scale, concurrency=concurrency)
        yield paired(f"drain, 1 process, concurrency {concurrency}", "tasks/s", scale, ours, limit, wanted="0.3 of raw")
    if scale.uvloop:
        ours = partial(drain_rate, files, scale, uvloop=True)
        yield paired("drain, 1 process, uvloop", "tasks/s", scale, ours, limit, wanted="0.4 of raw")
    one = partial(drain_rate, files, scale)
    two = partial(drain_rate, files, scale, count=2)
    yield paired("drain, 2 processes", "tasks/s", scale, two, one, limit_name="1 process", wanted="1.4 of one")
