"""Work under load while the server is killed and connections are cut, and an account of every task at the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from servers.proxy import Proxy
from servers.redis import KEYS, RedisServer
from sitq import BackendError, TaskQueue, Worker
from sitq.backends.redis import RedisBackend

__all__ = ["FAULTS", "Fault", "Ledger"]

STALL = 90.0

Fault = Callable[["Ledger"], Awaitable[None]]


_RUNS: dict[str, Counter[str]] = {}


async def note(namespace: str, key: str) -> str:
    """Run as a task: count the run. After a lost lease it runs in a child process, whose count nobody sees."""
    _RUNS.setdefault(namespace, Counter())[key] += 1
    return key


class Ledger:
    """Producers and a worker behind a proxy: `run` some faults; at the end nothing acknowledged may be missing."""

    def __init__(self, server: RedisServer, namespace: str = "ledger", durability: str = "strict") -> None:
        self.server = server
        self.acknowledged: list[str] = []
        self.keys: dict[str, str] = {}
        self.refused = 0
        self.runs = _RUNS[namespace] = Counter()
        self.proxy: Proxy
        self.namespace = namespace
        self.durability = durability
        self._numbers = 0
        self._stopping = False

    async def run(self, faults: Sequence[str]) -> None:
        """Work while these faults happen one after the other, then account for every task."""
        async with Proxy(self.server.port) as self.proxy:
            await self.work(f"redis://127.0.0.1:{self.proxy.port}/0", [FAULTS[fault] for fault in faults])

    async def work(self, url: str, faults: Sequence[Fault], **options: Any) -> None:
        """Work at a URL while these faults happen, then account for every task."""
        settings: dict[str, Any] = {
            "namespace": self.namespace,
            "durability": self.durability,
            "signing_keys": KEYS,
            "timeout": 1.0,
        }
        backend = RedisBackend(url, **(settings | options))
        async with TaskQueue(backend) as queue, Worker(queue, max_concurrency=20, lease=3.0):
            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(self._produce(queue))
                for fault in faults:
                    await self._progress()
                    await fault(self)
                await self._progress()
                self._stopping = True
            await self._account(queue)

    async def _produce(self, queue: TaskQueue) -> None:
        while not self._stopping:
            self._numbers += 1
            key = f"task-{self._numbers}"
            try:
                handle = await queue.enqueue(note, self.namespace, key)
            except BackendError:
                self.refused += 1
                continue
            assert handle.created, f"{key} is new, and was answered as if it had been there"
            self.acknowledged.append(handle)
            self.keys[handle] = key
            await asyncio.sleep(0.002)

    async def _progress(self) -> None:
        """Wait until work is accepted and done again."""
        accepted, ran = len(self.acknowledged) + 20, len(self.runs) + 20
        async with asyncio.timeout(STALL):
            while len(self.acknowledged) < accepted or len(self.runs) < ran:  # noqa: ASYNC110 (counted elsewhere)
                await asyncio.sleep(0.01)

    async def _account(self, queue: TaskQueue) -> None:
        """Every acknowledged task has its own result."""
        for handle in self.acknowledged:
            result = await queue.get_result(handle, timeout=STALL)
            assert result is not None, f"{handle} was acknowledged, and has no result"
            assert result.status == "success", result
            assert result.value == self.keys[handle], "the result of another task"

    # --- faults -------------------------------------------------------------------------------------------------------

    async def kill(self) -> None:
        """The server dies by SIGKILL and comes back with what is in its file."""
        await asyncio.to_thread(self.server.stop)
        self.server.launch()
        while not self.server.answers():  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)

    async def cut(self) -> None:
        """All connections are reset."""
        self.proxy.cut()

    async def deaf(self) -> None:
        """Requests arrive, replies do not, and then the connections are reset."""
        self.proxy.deafen()
        await asyncio.sleep(0.2)
        self.proxy.mend()

    async def hang(self) -> None:
        """Nothing arrives any more, and no connection ends by itself, until those who wait have lost patience."""
        self.proxy.hang()
        await asyncio.sleep(1.2)
        self.proxy.mend()


FAULTS: dict[str, Fault] = {
    "kill": Ledger.kill, "cut": Ledger.cut, "deaf": Ledger.deaf, "hang": Ledger.hang,
}  # fmt: skip
