"""sitq on SQLite.  Variants: (none) durability="full"; relaxed, strict; uvloop (may be combined: strict-uvloop).

`SITQ_SOURCE` names what pip installs: a checkout, unless the distribution is on an index.
"""

from bench import URL, VARIANT, awork, sqlite_count
from sitq import SQLiteBackend, TaskQueue, Worker

INFO = dict(
    packages=[],
    imports="sitq",
    server=None,
    concurrency=[10, 100],
    kind="asyncio",
    results=True,
    uvloop="uvloop" in VARIANT,
    durability="WAL, accepted tasks FULL, results NORMAL",
)
BULK = "enqueue_many"
LEVEL = next((level for level in ("relaxed", "strict") if level in VARIANT), "full")
queue = None


async def use(opened):
    global queue
    queue = opened
    await queue.connect()


async def setup(create):
    await use(TaskQueue(SQLiteBackend(URL, durability=LEVEL)))


async def enqueue(i):
    return await queue.enqueue(awork, i)


async def enqueue_many(ids):
    await queue.enqueue_many(awork, [(i,) for i in ids])


async def result(handle):
    return await handle.result(30)


LEFT = "SELECT (SELECT count(*) FROM {t} WHERE status = 0) + (SELECT count(*) FROM {t} WHERE status = 1)"


def unfinished(n):
    return sqlite_count(LEFT.format(t="sitq_tasks"))


async def worker(c):
    await Worker(queue, max_concurrency=c).start()
