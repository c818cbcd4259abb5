"""How long PostgreSQL takes to reserve, with 1,000,000 tasks waiting and a session idle in transaction, and without.

`scripts/slow bloat [number]` runs it; `number` is how many tasks wait.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from servers.postgres import KEYS, PostgresServer
from sitq.backends.postgres import PostgresBackend
from sitq.core import NewTask, Outcome, Result, Task, WorkerInfo

WANTED = 3.0
FEW = 1_000
HANDED_OUT = 50_000  # before it is measured, while the reader reads
ROUNDS = 1_000
WORKER = WorkerInfo(id="w", lease=3600.0)
FILL = """
INSERT INTO sitq.sitq_tasks (id, queue, priority, due, created_at, name, payload)
SELECT 'fill-' || n, 'default', 0, now() - interval '1 hour' + n * interval '1 ms', now(), 'm:f',
    repeat('x', 200)::bytea
FROM generate_series(1, %s) AS n
"""


async def step(backend: PostgresBackend, limit: int, names: str) -> float:
    """Put as many tasks behind the others as are reserved and ended; return how long the reserving took."""
    await backend.enqueue_tasks([NewTask(task=Task(id=f"{names}-{n}", payload=b"x" * 200)) for n in range(limit)])
    start = time.perf_counter()
    tasks = await backend.reserve(WORKER, limit)
    took = time.perf_counter() - start
    if len(tasks) != limit:
        raise SystemExit(f"failed: {len(tasks)} tasks were reserved, not {limit}")
    await backend.settle([Outcome.completed(task.id, task.fence, Result(task_id=task.id)) for task in tasks])
    return took


async def measure(url: str, waiting: int, with_reader: bool, limit: int) -> list[float]:
    """Return the milliseconds of each reserve."""
    with psycopg.connect(url, autocommit=True) as connection, psycopg.connect(url) as reader:
        connection.execute("DROP SCHEMA IF EXISTS sitq CASCADE")
        async with PostgresBackend(url, signing_keys=KEYS) as backend:
            connection.execute(FILL, [waiting])
            connection.execute("VACUUM ANALYZE sitq.sitq_tasks")
            for n in range(20):
                await step(backend, limit, f"warm-{n}")
            if with_reader:  # its snapshot keeps every row and index entry that dies from now on
                reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                reader.execute("SELECT count(*) FROM sitq.sitq_queues")
            for n in range(HANDED_OUT // 100):
                await step(backend, 100, f"before-{n}")
            return [await step(backend, limit, f"t-{n}") * 1e3 for n in range(ROUNDS)]


async def main() -> None:
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    server = PostgresServer(fsync=True)
    server.start()
    late: list[str] = []
    try:
        for limit in (100, 1):
            print(
                f"PostgreSQL {server.version}, {HANDED_OUT:,} tasks handed out, then {ROUNDS:,} times: "
                f"enqueue {limit}, reserve {limit}, settle {limit}"
            )
            p99s: list[float] = []
            for waiting, with_reader in ((FEW, False), (many, False), (many, True)):
                times: list[Any] = sorted(await measure(server.url, waiting, with_reader, limit))
                p99s.append(times[int(len(times) * 0.99)])
                what = f"{waiting:,} waiting, {'a' if with_reader else 'no'} reader"
                p50 = statistics.median(times)
                print(f"  {what:>28}: p50 {p50:6.2f} ms, p99 {p99s[-1]:6.2f} ms, worst {times[-1]:6.2f} ms", flush=True)
            ratios = [p99s[2] / before for before in p99s[:2]]
            print(f"  p99 with both: {ratios[0]:.2f} times that with neither, {ratios[1]:.2f} without the reader")
            late += [f"{ratio:.2f} times for {limit}" for ratio in ratios if ratio > WANTED]
    finally:
        server.remove()
    if late:
        raise SystemExit(f"failed: more than {WANTED:g} times: {', '.join(late)}")


if __name__ == "__main__":
    asyncio.run(main())
