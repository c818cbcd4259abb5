"""What else a queue meets: depth, sizes, threads and children, many queues, many slots, a fresh interpreter."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

from benchmarks import processes, raw
from benchmarks.calls import nap, plain, size_of, slots
from benchmarks.figures import Figure, Scale, paired, single
from benchmarks.speed import Files, drain_rate, fill, raw_drain_rate
from sitq import SQLiteBackend, TaskQueue

__all__ = ["executors", "growth", "imports", "payloads", "queues", "slot_fill"]

_DEEP = """
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :rows)
INSERT INTO sitq_tasks
(id, status, queue, priority, due, created_at, name, payload, outcome, result, attempt, fence, purge_at, finished_at)
SELECT printf('00000000-0000-7000-%04x-%012x', :status, n), :status, 'default', 0, :due, :due - 1, 'echo', x'00',
    iif(:status = 2, 'success', NULL), iif(:status = 2, x'00', NULL), :status = 2, :status = 2,
    iif(:status = 2, :due + 86400, NULL), iif(:status = 2, :due, NULL)
FROM number
"""


def _deepen(path: str, count: int) -> None:
    now = time.time()
    with closing(raw.connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for status, due in ((2, now - 60), (0, now + 30 * 86_400)):
            connection.execute(_DEEP, {"rows": count, "status": status, "due": due})
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def growth(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure the drain of a file with many finished and many later rows beside that of an empty one."""
    deep = Files(files.folder / "deep").fresh()
    _deepen(deep, scale.deep_rows)

    def ours() -> float:
        fill(deep, scale.tasks)
        with processes.workers(deep) as started:
            return scale.tasks / processes.drained_in(deep, started)

    name = f"drain, {scale.deep_rows:,} finished and as many later"
    empty = partial(drain_rate, files, scale)
    yield paired(name, "tasks/s", scale, ours, empty, limit_name="an empty file", wanted="0.9 of empty")


def payloads(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure calls of three sizes through enqueue and drain, beside raw inserts and a raw drain."""
    for size, name, count in ((100, "100 B", scale.tasks // 2), (10_000, "10 kB", 2000), (900_000, "900 kB", 100)):
        data = bytes(size)

        def ours(data: bytes = data, count: int = count) -> float:
            path = files.fresh()

            async def go() -> None:
                async with TaskQueue(SQLiteBackend(path)) as queue:
                    await queue.enqueue_many(size_of, [(data,)] * count)

            begin = time.perf_counter()
            asyncio.run(go())
            seconds = time.perf_counter() - begin
            with processes.workers(path) as started:
                return count / (seconds + processes.drained_in(path, started))

        def limit(data: bytes = data, count: int = count) -> float:
            path = files.fresh()
            seconds = raw.insert(path, raw.rows(count, data), raw.BATCH if len(data) < 100_000 else 4)
            return count / (seconds + raw.drain(path)[1])

        yield paired(f"enqueue in bulk and drain, calls of {name}", "tasks/s", scale, ours, limit)


def executors(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure plain functions in threads and in child processes beside the raw drain of as many."""
    for executor, count in (("thread", scale.tasks // 4), ("process", scale.tasks // 10)):
        small = replace(scale, tasks=count)

        def ours(executor: str = executor, count: int = count) -> float:
            path = files.fresh()

            async def go() -> None:
                async with TaskQueue(SQLiteBackend(path)) as queue:
                    calls = [(number,) for number in range(count)]
                    await queue.options(executor=executor).enqueue_many(plain, calls)

            asyncio.run(go())
            with processes.workers(path) as started:
                return count / processes.drained_in(path, started)

        limit = partial(raw_drain_rate, files, small)
        yield paired(f"drain, plain functions, {executor}", "tasks/s", scale, ours, limit)


def queues(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure five queues with ten priorities, drained at once."""

    def spread(path: str) -> None:
        for number in range(50):
            fill(path, scale.tasks // 50, queue=f"queue-{number % 5}", priority=number // 5)

    def ours() -> float:
        path = files.fresh()
        spread(path)
        with processes.workers(path) as started:
            return scale.tasks / processes.drained_in(path, started)

    def limit() -> float:
        path = files.fresh()
        spread(path)
        done, seconds = raw.drain(path)
        return done / seconds

    yield paired("drain, 5 queues of 10 priorities", "tasks/s", scale, ours, limit)


def slot_fill(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure how many slots sleeping tasks keep busy, on average.

    Tasks of 10 ms in 1,000 slots would be 100,000 a second, several times what one process can start: full slots would
    only mean that the event loop is late. So the same is asked at 10,000 a second, in two ways.
    """

    def once(slot_count: int, seconds: float) -> float:
        path = files.fresh()

        async def go() -> float:
            async with TaskQueue(SQLiteBackend(path)) as queue:
                await queue.enqueue_many(nap, [(seconds,)] * scale.tasks)
                with processes.workers(path, concurrency=slot_count) as started:
                    await asyncio.to_thread(processes.drained_in, path, started)
                    return await (await queue.enqueue(slots)).result(timeout=30) / slot_count

        return asyncio.run(go())

    for slot_count, seconds, wanted in ((100, 0.01, "0.9"), (1000, 0.1, "0.9"), (1000, 0.01, "")):
        name = f"slots busy, {slot_count:,}, tasks of {seconds * 1e3:g} ms"
        yield single(name, "of all", [once(slot_count, seconds) for _ in range(scale.pairs)], wanted)


def imports(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure `import sitq` beside `import asyncio`, each in a fresh interpreter."""

    def seconds(module: str) -> float:
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(run.stdout) * 1e3

    often = replace(scale, pairs=4 * scale.pairs)
    ours, limit = partial(seconds, "sitq"), partial(seconds, "asyncio")
    yield paired("import sitq", "ms", often, ours, limit, limit_name="import asyncio", wanted="1.8 of asyncio")
