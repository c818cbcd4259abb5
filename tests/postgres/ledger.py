"""Work under load while the server crashes and the network breaks, and an account of every task at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from servers.postgres import KEYS, PostgresServer
from servers.proxy import Proxy
from sitq import BackendError, TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend, _connect
from waiting import until

__all__ = ["FAULTS", "Ledger"]

STALL = 90.0


async def note(log: str, key: str) -> str:
    """Note that a task ran: in a file, since one whose lease was lost runs in a child process the next time."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, f"{key}\n".encode())
    os.close(descriptor)
    return key


class Ledger:
    """Producers and a worker behind a proxy: `run` some faults, then `check` that nothing was lost.

    The proxy leads to `port`, or else to the server itself; `options` are the backend's.
    """

    def __init__(
        self,
        server: PostgresServer,
        durability: str = "full",
        schema: str = "sitq",
        port: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.server = server
        self.durability = durability
        self._port = port or server.port
        self._options: dict[str, Any] = dict(options or {})
        self.acknowledged: list[str] = []
        self.done: list[str] = []
        self.refused = 0
        self.again = 0
        self.proxy: Proxy
        self._log: Path
        self._schema = schema
        self._stopping = False
        self._numbers = 0
        self._producing: list[asyncio.Task[None]] = []

    async def run(self, faults: Sequence[str]) -> None:
        """Work while these faults happen one after the other."""
        with tempfile.TemporaryDirectory(prefix="sitq-ledger-") as folder:
            self._log = Path(folder, "runs")
            self._log.touch()
            await self._run(faults)

    async def _run(self, faults: Sequence[str]) -> None:
        async with Proxy(self._port) as self.proxy:
            url = self.server.url.replace(str(self.server.port), str(self.proxy.port))
            backend = PostgresBackend(
                url, schema=self._schema, durability=self.durability, signing_keys=KEYS, **self._options
            )
            async with TaskQueue(backend) as queue:
                self._producing = [asyncio.create_task(self._produce(queue)) for _ in range(5)]
                # What was reserved and not heard of comes back when its lease ends.
                async with Worker(queue, max_concurrency=20, lease=8.0):
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
                handle = await queue.enqueue(note, str(self._log), key)
            except BackendError:
                self.refused += 1
                continue
            assert handle.created, f"{key} is new, and was answered as if it had been there"
            self.acknowledged.append(handle)
            await asyncio.sleep(0.002)

    async def _progress(self) -> None:
        """Wait until work is accepted and done again."""
        accepted, ran = len(self.acknowledged) + 20, self._log.stat().st_size + 200  # bytes: some twenty runs
        async with asyncio.timeout(STALL):
            while len(self.acknowledged) < accepted or self._log.stat().st_size < ran:
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
                self.done.append(result.value)
        runs = Counter(self._log.read_text(encoding="utf-8").split())
        self.again = runs.total() - len(runs)
        unseen = set(self.done) - set(runs)
        assert not unseen, f"these have a result, and did not run: {unseen}"
        if self.durability == "strict":
            twice = {key: count for key, count in runs.items() if count > 1}
            assert not twice, f"nothing was lost, and these ran again: {twice}"

    def account(self, rounds: int) -> str:
        """Say in a line how it went."""
        return (
            f"{rounds} crashes, and as many connections cut, deaf and half-open: {len(self.acknowledged):,} tasks "
            f"acknowledged, {len(self.done):,} done, {self.refused:,} refused, {self.again:,} runs more than tasks"
        )

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
