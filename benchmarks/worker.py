"""A worker process: connects, says so, waits for the word, works until it is killed."""

from __future__ import annotations

import asyncio
import sys

from sitq import CloudpickleSerializer, SQLiteBackend, TaskQueue, Worker

__all__ = ["main", "make_store", "queue_of"]


def queue_of(store: str) -> TaskQueue:
    """Return the queue on a store: the path of a file, or a URL. What goes over a network is not signed either."""
    return TaskQueue(store if "://" in store else SQLiteBackend(store), CloudpickleSerializer())


def make_store(store: str) -> None:
    """Make a store that is empty."""

    async def make() -> None:
        async with queue_of(store):
            pass

    asyncio.run(make())


async def work(store: str, concurrency: int) -> None:
    """Work on a store."""
    async with queue_of(store) as queue:
        worker = Worker(queue, max_concurrency=concurrency)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await worker.start()


def main() -> None:
    """Read the arguments and work."""
    store, concurrency, *options = sys.argv[1:]
    if "--uvloop" in options:
        import uvloop

        uvloop.run(work(store, int(concurrency)))
    else:
        asyncio.run(work(store, int(concurrency)))


if __name__ == "__main__":
    main()
