"""Work under load while the server crashes and the network breaks, and an account of every task at the end."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from servers.postgres import KEYS, PostgresServer
from servers.proxy import Proxy
from sitq import BackendError, TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend, _connect
from waiting import until

__all__ = ["FAULTS", "Ledger"]

STALL = 90.0
_runs: Counter[str] = Counter()  # of this process, where the workers are


async def note(key: str) -> str:
    """Note that a task ran."""
    _runs[key] += 1
    return key


class Ledger:
    """Producers and a worker behind a proxy: `run` some faults, then `check` that nothing was lost."""

    def __init__(self, server: PostgresServer, durability: str = "full", schema: str = "sitq") -> None:
        self.server = server
        self.durability = durability
        self.acknowledged: list[str] = []
        self.refused = 0
        self.runs = _runs
        _runs.clear()
        self.proxy: Proxy
        self._schema = schema
        self._stopping = False
        self._numbers = 0
        self._producing: list[asyncio.Task[None]] = []

    async def run(self, faults: Sequence[str]) -> None:
        """Work while these faults happen one after the other."""
        async with Proxy(self.server.port) as self.proxy:
            url = self.server.url.replace(str(self.server.port), str(self.proxy.port))
            backend = PostgresBackend(url, schema=self._schema, durability=self.durability, signing_keys=KEYS)
            async with TaskQueue(backend) as queue:
                self._producing = [asyncio.create_task(self._produce(queue)) for _ in range(5)]
                async with Worker(
                    queue, max_concurrency=20, lease=8.0
                ):  # what was not heard of comes back in 4 seconds
                    for fault in faults:
                        await self._progress()
                        await FAULTS[fault](self)
                    await self._progress()
                    self._stopping = True
                    await asyncio.gather(*self._producing)
                    await self._check(queue)

    async def _produce(self, queue: TaskQueue) -> None:
        while not self._stopping:
            self._numbers += 1
            key = f"task-{self._numbers}"
            try:
                handle = await queue.enqueue(note, key)
            except BackendError:
                self.refused += 1
                continue
            assert handle.created, f"{key} is new, and was answered as if it had been there"
            self.acknowledged.append(handle)
            await asyncio.sleep(0.002)

    async def _progress(self) -> None:
        """Wait until work is accepted and done again."""
        accepted, ran = len(self.acknowledged) + 20, len(self.runs) + 20
        async with asyncio.timeout(STALL):
            while len(self.acknowledged) < accepted or len(self.runs) < ran:
                await asyncio.sleep(0.01)
                for task in self._producing:
                    if task.done():
                        task.result()

    async def _check(self, queue: TaskQueue) -> None:
        """Every acknowledged task has one result; with "strict", none ran twice."""
        async with asyncio.timeout(STALL):
            for handle in self.acknowledged:
                result = await queue.get_result(handle, timeout=STALL)
                assert result is not None, f"{handle} was acknowledged, and has no result"
                assert result.status == "success", result
                assert self.runs[result.value] >= 1, f"{result.value} has a result, and did not run"
        if self.durability == "strict":
            twice = {key: count for key, count in self.runs.items() if count > 1}
            assert not twice, f"nothing was lost, and these ran again: {twice}"

    # --- faults -------------------------------------------------------------------------------------------------------

    async def crash(self) -> None:
        """The server dies, as with `pg_ctl stop -m immediate`, and comes back."""
        await asyncio.to_thread(self.server.stop, signal.SIGQUIT)
        self.server.launch()
        await until(self.server.answers)

    async def cut(self) -> None:
        """All connections are reset."""
        self.proxy.cut()

    async def deaf(self) -> None:
        """Requests arrive, replies do not, and then the connections are reset."""
        self.proxy.deafen()
        await asyncio.sleep(0.2)
        self.proxy.mend()

    async def hang(self) -> None:
        """Nothing arrives any more, and no connection ends by itself."""
        self.proxy.hang()
        await asyncio.sleep(_connect._COMMAND_TIMEOUT + 0.2)
        self.proxy.mend()


FAULTS: dict[str, Callable[[Ledger], Awaitable[None]]] = {
    "crash": Ledger.crash, "cut": Ledger.cut, "deaf": Ledger.deaf, "hang": Ledger.hang,
}  # fmt: skip
