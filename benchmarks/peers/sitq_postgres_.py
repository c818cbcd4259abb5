"""sitq on PostgreSQL.  Variants: (none) durability="full"; relaxed, strict; uvloop (may be combined: strict-uvloop).

Payloads are not signed, as those of the others are not. `SITQ_SOURCE` as for SQLite, whose adapter does the rest.
"""

import asyncpg
from adapters.sitq_ import LEFT, LEVEL, enqueue, enqueue_many, result, use, worker
from bench import URL, VARIANT
from sitq import CloudpickleSerializer, PostgresBackend, TaskQueue

__all__ = ["enqueue", "enqueue_many", "result", "worker"]

INFO = dict(
    packages=[],
    imports="sitq",
    server="postgres",
    concurrency=[10, 100],
    kind="asyncio",
    results=True,
    uvloop="uvloop" in VARIANT,
    durability="PostgreSQL's; results without waiting for the disk",
)
BULK = "enqueue_many"


connection = None


async def setup(create):
    await use(TaskQueue(PostgresBackend(URL, durability=LEVEL), CloudpickleSerializer()))


async def unfinished(n):
    global connection
    connection = connection or await asyncpg.connect(URL)
    return await connection.fetchval(LEFT.format(t="sitq.sitq_tasks"))
