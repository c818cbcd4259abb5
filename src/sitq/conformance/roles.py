"""What a process started by the suite does: `python -m sitq.conformance.roles ROLE FACTORY …`.

`drain` reserves all there is and prints the ids; `produce` enqueues and writes each acknowledged id into a synced
ledger; `work` runs a worker. Only the first one ends by itself: the others are there to be killed.
"""

from __future__ import annotations

import asyncio
import base64
import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from sitq.backends.base import Backend
from sitq.conformance.calls import append_line, note
from sitq.core import WorkerInfo
from sitq.queue import TaskQueue
from sitq.worker import Worker

__all__: list[str] = []

_AHEAD = 25  # tasks


async def _drain(backend: Backend) -> None:
    async with backend:
        worker = WorkerInfo(id=f"drain-{os.getpid()}", lease=3600.0, pid=os.getpid())
        while reserved := await backend.reserve(worker, 4):
            print(*(task.id for task in reserved))  # noqa: T201 (this is the answer)


async def _produce(backend: Backend, acknowledged: str, runs: str) -> None:
    """Enqueue without end; an id is in the ledger only once `enqueue` has returned it.

    Not far ahead of the workers: over 200 kills the tasks in front of a slow store became more than could be worked off
    in the end.
    """
    async with TaskQueue(backend) as queue:

        async def lane() -> None:
            ahead: deque[str] = deque()
            while True:
                if len(ahead) == _AHEAD:
                    await queue.get_result(ahead.popleft(), timeout=1.0)
                ahead.append(await queue.enqueue(note, runs, 0.002))
                append_line(Path(acknowledged), ahead[-1])

        await asyncio.gather(*(lane() for _ in range(4)))


async def _work(backend: Backend, lease: str, lost: str = "") -> None:
    """Run a worker; ids of tasks it was refused go into the file `lost`."""
    async with TaskQueue(backend) as queue:
        if lost:
            queue.on("lease_lost", lambda event: append_line(Path(lost), str(event.task_id)))
        await Worker(queue, max_concurrency=4, lease=float(lease), poll_interval=0.1).start()


def main(role: str, factory: str, *arguments: str) -> None:
    """Play a role."""
    backend = pickle.loads(base64.b64decode(factory))()  # noqa: S301 (from the parent process)
    roles: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"drain": _drain, "produce": _produce, "work": _work}
    asyncio.run(roles[role](backend, *arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
