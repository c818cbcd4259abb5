"""sitq on PostgreSQL.  Variants: (none) durability="full"; relaxed, strict; uvloop (may be combined: strict-uvloop).

Payloads are not signed, as those of the others are not.
`SITQ_SOURCE` names what pip installs: a checkout, unless the distribution is on an index.
"""

from bench import URL, VARIANT, awork
from sitq import CloudpickleSerializer, PostgresBackend, TaskQueue, Worker

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
LEVEL = next((level for level in ("relaxed", "strict") if level in VARIANT), "full")
queue = None


async def setup(create):
    global queue
    queue = TaskQueue(PostgresBackend(URL, durability=LEVEL), CloudpickleSerializer())
    await queue.connect()


async def enqueue(i):
    return await queue.enqueue(awork, i)


async def enqueue_many(ids):
    await queue.enqueue_many(awork, [(i,) for i in ids])


async def result(handle):
    return await handle.result(30)


async def unfinished(n):
    counts = await queue.backend.count_tasks()
    return n - sum(c.phases.get("completed", 0) + c.phases.get("failed", 0) for c in counts)


async def worker(c):
    await Worker(queue, max_concurrency=c).start()
