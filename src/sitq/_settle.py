"""The way out of `running`: outcomes are handed to the store in batches, again and again until it has answered.

While one batch is in flight the next one gathers. An outcome is given up only when its lease has ended, and then never
silently.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from sitq.core import Outcome
from sitq.retry import backoff

if TYPE_CHECKING:
    from sitq._execute import Run
    from sitq.backends.base import Backend

__all__ = ["Settler"]

logger = logging.getLogger("sitq")

_BATCH = 500


class Settler:
    """Delivers outcomes; calls `settled` for each the store has taken, `dropped` for each it refused or never heard."""

    def __init__(
        self, backend: Backend, settled: Callable[[Run, Outcome], None], dropped: Callable[[Run, str], None]
    ) -> None:
        self._backend = backend
        self._settled = settled
        self._dropped = dropped
        self._pending: deque[tuple[Run, Outcome]] = deque()
        self._any = asyncio.Event()

    def put(self, run: Run, outcome: Outcome) -> None:
        """Queue an outcome for delivery."""
        run.settling = True
        self._pending.append((run, outcome))
        self._any.set()

    async def loop(self) -> None:
        """Deliver what comes until cancelled."""
        while True:
            await self._any.wait()
            self._any.clear()
            while self._pending:
                batch = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
                await self._deliver(batch)

    async def _deliver(self, batch: list[tuple[Run, Outcome]]) -> None:
        failures = 0
        while batch:
            try:
                answers = await self._backend.settle([outcome for _, outcome in batch])
            except Exception as error:  # noqa: BLE001 (whatever it is, the outcomes are still owed)
                failures += 1
                logger.warning("cannot settle %d tasks (%s: %s); repeating", len(batch), type(error).__name__, error)
                await asyncio.sleep(backoff(failures, 0.1, 5.0))
                batch = self._without_lapsed(batch)
            else:
                self._answered(batch, answers)
                return
            if len(batch) > 1:  # one bad outcome must not hold up the others
                await asyncio.gather(*(self._deliver([item]) for item in batch))
                return

    def _answered(self, batch: list[tuple[Run, Outcome]], answers: list[bool]) -> None:
        for (run, outcome), accepted in zip(batch, answers, strict=True):
            if accepted:
                self._settled(run, outcome)
            else:
                self._dropped(run, "another worker or an operator has taken it")

    def _without_lapsed(self, batch: list[tuple[Run, Outcome]]) -> list[tuple[Run, Outcome]]:
        now = time.monotonic()
        for run, outcome in batch:
            if run.lease_until <= now:
                self._dropped(run, f"{outcome.kind} could not be delivered before its lease ended")
        return [(run, outcome) for run, outcome in batch if run.lease_until > now]
