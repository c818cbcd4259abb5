"""A worker process: connects, says so, waits for the word, works until it is killed."""

from __future__ import annotations

import asyncio
import sys

from sitq import SQLiteBackend, TaskQueue, Worker

__all__ = ["main"]


async def work(path: str, concurrency: int) -> None:
    """Work on a file."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        worker = Worker(queue, max_concurrency=concurrency)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await worker.start()


def main() -> None:
    """Read the arguments and work."""
    path, concurrency, *options = sys.argv[1:]
    if "--uvloop" in options:
        import uvloop

        uvloop.run(work(path, int(concurrency)))
    else:
        asyncio.run(work(path, int(concurrency)))


if __name__ == "__main__":
    main()
