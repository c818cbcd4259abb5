"""The heartbeat: renews leases, and finds out which are lost or asked to be cancelled.

It runs in a thread of its own, on its own event loop and its own handle on the store (`Backend.clone`), because a task
that blocks the worker's loop must not cost the worker its leases.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sitq.core import Extended, Held, WorkerInfo

if TYPE_CHECKING:
    from sitq._execute import Run
    from sitq.backends.base import Backend

__all__ = ["Heartbeat", "held_of", "note_extended"]

logger = logging.getLogger("sitq")

BEAT = 1.0  # seconds between looks while tasks are held: a request to cancel is seen within this


def held_of(runs: Iterable[Run]) -> list[Held]:
    """Return what to tell the store of these runs: progress only where it is news."""
    return [
        Held(
            id=run.reserved.id,
            fence=run.reserved.fence,
            progress=run.unpublished(),
            state="waiting" if run.started is None else "running",
        )
        for run in runs
    ]


def note_extended(
    runs: Iterable[Run], held: Iterable[Held], answer: Extended, asked: float, worker: WorkerInfo
) -> None:
    """Note on each run what the store has confirmed: what is left of its lease, and the progress it has seen.

    A store may leave a lease alone while two thirds of it are left, so no more than that is sure. `asked` is the
    monotonic time from before the request.
    """
    until = asked + worker.lease * 2 / 3
    for run, item in zip(runs, held, strict=True):
        if item.id not in answer.lost:
            run.lease_until = max(run.lease_until, until)
            run.published = item.progress if item.progress is not None else run.published


class Heartbeat:
    """Extends the leases of a worker until it is stopped.

    `runs` returns what the worker holds; `answered` and `lapsed` are called on the worker's loop: with the store's
    answer, and with the runs whose lease has ended on the worker's own clock because the store could not be reached.
    """

    def __init__(
        self,
        backend: Backend,
        worker: WorkerInfo,
        runs: Callable[[], list[Run]],
        answered: Callable[[list[Run], Extended], None],
        lapsed: Callable[[list[Run]], None],
    ) -> None:
        self._backend = backend
        self._worker = worker
        self._runs = runs
        self._answered = answered
        self._lapsed = lapsed
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="sitq-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; a store that does not answer is not waited for longer than a second."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, 1.0)

    def _main(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        """Beat every second while tasks are held; an idle worker only shows that it lives, at a third of its lease."""
        shown = float("-inf")
        while not self._stopping.wait(min(BEAT, self._worker.lease / 3)):
            runs = self._runs()
            if runs or time.monotonic() - shown >= self._worker.lease / 3:
                shown = time.monotonic()
                await self._beat(runs)
        try:
            await self._backend.close()
        except Exception as error:  # noqa: BLE001 (the work is done; there is nobody to raise it to)
            logger.warning("cannot close the heartbeat's handle (%s: %s)", type(error).__name__, error)

    async def _beat(self, runs: list[Run]) -> None:
        asked = time.monotonic()
        try:
            held = held_of(runs)
            async with asyncio.timeout(self._worker.lease / 3):
                await self._backend.connect()
                answer = await self._backend.extend_leases(self._worker, held)
            note_extended(runs, held, answer, asked, self._worker)
        except Exception as error:  # noqa: BLE001 (trouble with the store is weather: leases say when it is too much)
            logger.warning("cannot extend leases (%s: %s); trying again", type(error).__name__, error)
            self._tell_lapsed(runs)
            return
        if answer.lost or answer.cancelled:
            self._tell(self._answered, runs, answer)

    def _tell_lapsed(self, runs: list[Run]) -> None:
        now = time.monotonic()
        lapsed = [run for run in runs if run.lease_until <= now]
        if lapsed:
            self._tell(self._lapsed, lapsed)

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the worker's loop is closed
            self._stopping.set()
