"""From enqueue to the task's start and to its result, and what an idle worker costs."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from benchmarks import processes, raw
from benchmarks.calls import stamp
from benchmarks.figures import Figure, Scale, paired, single
from benchmarks.raw_worker import Ear
from benchmarks.speed import Files
from benchmarks.worker import queue_of
from sitq import TaskQueue, Worker

__all__ = ["idle", "latency", "other_process", "quantile"]

Times = list[tuple[float, float]]  # milliseconds to start, to result


async def _rounds(queue: TaskQueue, count: int) -> Times:
    times: Times = []
    for _ in range(count + 5):
        await asyncio.sleep(random.uniform(0.005, 0.015))  # noqa: S311
        begin = time.monotonic()
        handle = await queue.enqueue(stamp)
        started = await handle.result(timeout=30)
        times.append(((started - begin) * 1e3, (time.monotonic() - begin) * 1e3))
    return times[5:]


def _same_process(path: str, count: int) -> Times:
    async def go() -> Times:
        async with queue_of(path) as queue, Worker(queue):
            return await _rounds(queue, count)

    return asyncio.run(go())


def other_process(store: str, count: int) -> Times:
    """Enqueue here, for a worker process."""

    async def go() -> Times:
        async with queue_of(store) as queue:
            return await _rounds(queue, count)

    with processes.workers(store) as started:
        processes.start(started)
        return asyncio.run(go())


def _raw(path: str, count: int) -> Times:
    """Insert with an fsync, write the wake file; the other process reserves, completes, and writes the done file."""
    times: Times = []
    with processes.process("benchmarks.raw_worker", path), closing(raw.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        ear, wake = Ear(f"{path}-done"), os.open(f"{path}-wake", os.O_WRONLY)
        for row in raw.rows(count + 5):
            time.sleep(random.uniform(0.005, 0.015))  # noqa: S311
            begin = time.monotonic()
            raw.insert_one(connection, row)
            os.pwrite(wake, b"changed\n", 0)
            ear.listen()
            found = "SELECT started_at, result FROM sitq_tasks WHERE id = ?"
            started = connection.execute(found, (row[0],)).fetchone()[0]
            times.append(((started - begin) * 1e3, (time.monotonic() - begin) * 1e3))
        ear.close()
        os.close(wake)
    return times[5:]


def latency(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure single tasks, 5 to 15 ms apart."""
    once = replace(scale, pairs=min(scale.pairs, 3))
    for place, measure in (("same process", _same_process), ("other process", other_process)):
        runs: list[Times] = []
        limits: list[Times] = []

        def ours(measure: object = measure, runs: list[Times] = runs) -> float:
            taken = _same_process if measure is _same_process else other_process
            runs.append(taken(files.fresh(), scale.rounds))
            return statistics.median(start for start, _ in runs[-1])

        def limit(limits: list[Times] = limits) -> float:
            limits.append(_raw(files.fresh(), scale.rounds))
            return statistics.median(start for start, _ in limits[-1])

        wanted = "1 ms" if measure is other_process else ""
        yield paired(f"to start, {place}, p50", "ms", once, ours, limit, limit_name="raw, other process", wanted=wanted)
        starts, results = ([quantile([t[at] for t in run], 0.99) for run in runs] for at in (0, 1))
        yield single(f"to start, {place}, p99", "ms", starts, wanted and "5 ms")
        yield single(f"to result, {place}, p50", "ms", [statistics.median(t[1] for t in run) for run in runs])
        yield single(f"to result, {place}, p99", "ms", results)


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of them lies."""
    return sorted(values)[int(len(values) * share)]


def idle(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure a worker that has nothing to do."""
    with processes.workers(files.fresh()) as started:
        processes.start(started)
        time.sleep(2)
        pid = started[0].pid
        before = processes.cpu_seconds(pid), processes.switches(pid)
        time.sleep(scale.idle_seconds)
        after = processes.cpu_seconds(pid), processes.switches(pid)
    yield single("idle worker", "% of a core", [(after[0] - before[0]) / scale.idle_seconds * 100], "0.3 %")
    yield single("idle worker, wake-ups", "a second", [(after[1] - before[1]) / scale.idle_seconds])
