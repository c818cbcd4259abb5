"""sitq on Redis.  Variants: (none) durability="relaxed", no log; aof: "full"; uvloop (may be combined: aof-uvloop).

Payloads are not signed, as those of the others are not. `SITQ_SOURCE` as for SQLite, whose adapter does the rest.
"""

from adapters.sitq_ import enqueue, enqueue_many, result, use, worker
from bench import URL, VARIANT
from redis import Redis
from sitq import CloudpickleSerializer, RedisBackend, TaskQueue

__all__ = ["enqueue", "enqueue_many", "result", "worker"]

INFO = dict(
    packages=[],
    imports="sitq",
    server="redis",
    concurrency=[10, 100],
    kind="asyncio",
    results=True,
    uvloop="uvloop" in VARIANT,
    durability="none, in memory; with aof every second",
)
BULK = "enqueue_many"
LEVEL = "full" if "aof" in VARIANT else "relaxed"
server = Redis.from_url(URL)


async def setup(create):
    await use(TaskQueue(RedisBackend(URL, durability=LEVEL), CloudpickleSerializer()))


def unfinished(n):
    return n - server.zcard("{sitq:default}:done")
