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

from sitq.core import Outcome, Reason, Result, utcnow
from sitq.exceptions import ValidationError
from sitq.retry import backoff

if TYPE_CHECKING:
    from sitq._execute import Run
    from sitq.backends.base import Backend

__all__ = ["MOST_OWED", "Settler"]

logger = logging.getLogger("sitq")

MOST_OWED = 2000  # outcomes: a store that settles slower than it reserves must not be handed ever more leases
_BATCH = 500
_TRIES = 5  # of one outcome, while others pass
_LONGEST_RUSH = 0.01  # seconds: on a slow machine 250 tasks that do nothing take 7 ms


class Settler:
    """Delivers outcomes; calls `settled` for each the store has taken, `dropped` for each it refused or never heard."""

    def __init__(
        self, backend: Backend, settled: Callable[[Run, Outcome], None], dropped: Callable[[Run, str], None]
    ) -> None:
        self.owed = 0  # outcomes the store has not answered
        self._backend = backend
        self._settled = settled
        self._dropped = dropped
        self._pending: deque[tuple[Run, Outcome]] = deque()
        self._any = asyncio.Event()
        self._alone: set[asyncio.Task[None]] = set()
        self._answers = 0  # batches the store has answered

    def put(self, run: Run, outcome: Outcome) -> None:
        """Queue an outcome for delivery."""
        run.settling = True
        self.owed += 1
        self._pending.append((run, outcome))
        self._any.set()

    async def loop(self) -> None:
        """Deliver what comes until cancelled."""
        try:
            while True:
                await self._any.wait()
                self._any.clear()
                while self._pending:
                    await self.lull()
                    await self._deliver(self._next_batch())
        finally:
            for task in self._alone:
                task.cancel()

    async def lull(self) -> None:
        """Wait until a turn of the event loop ends no task; up to 10 ms, and not for a store that works elsewhere.

        A store's own thread does not get the interpreter either while short tasks follow each other. Asked meanwhile,
        it waited for the GIL, and each system call of a task and each turn of the loop woke it in vain: a drained task
        that makes one call took 85 us of processor time, 59 when the store is asked in the lull (decision 0015).
        """
        if not self._backend.in_thread:
            return
        until = time.monotonic() + _LONGEST_RUSH
        owed = -1
        while owed != self.owed and len(self._pending) < _BATCH and time.monotonic() < until:
            owed = self.owed
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Deliver what is left, once, after `loop` was cancelled."""
        while self._pending:
            batch = self._next_batch()
            self._answered(batch, await self._backend.settle([outcome for _, outcome in batch]))

    def _next_batch(self) -> list[tuple[Run, Outcome]]:
        return [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]

    async def _deliver(self, batch: list[tuple[Run, Outcome]]) -> None:
        """Hand over a batch. If that fails its outcomes go alone from then on: a bad one must not hold up the rest."""
        try:
            answers = await self._backend.settle([outcome for _, outcome in batch])
        except asyncio.CancelledError:
            self._pending.extendleft(reversed(batch))
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the outcomes are still owed)
            logger.warning("cannot settle %d tasks (%s: %s); repeating", len(batch), type(error).__name__, error)
            for run, outcome in batch:
                task = asyncio.create_task(self._deliver_alone(run, outcome), name="sitq-settle")
                self._alone.add(task)
                task.add_done_callback(self._alone.discard)
            await asyncio.sleep(backoff(1, 0.1, 5.0))
        else:
            self._answered(batch, answers)

    async def _deliver_alone(self, run: Run, outcome: Outcome) -> None:
        failures, answers_before = 0, self._answers
        replaced = False
        while run.lease_until > time.monotonic():
            await asyncio.sleep(backoff(failures + 1, 0.1, 5.0))
            try:
                answers = await self._backend.settle([outcome])
            except asyncio.CancelledError:
                self._pending.append((run, outcome))
                raise
            except Exception as error:  # noqa: BLE001
                failures += 1
                logger.warning("cannot settle task %s (%s: %s)", run.reserved.id, type(error).__name__, error)
                if _is_at_fault(error) or (failures >= _TRIES and self._answers > answers_before):
                    if replaced:
                        break
                    outcome, replaced, failures = _instead_of(run, outcome, error), True, 0
            else:
                self._answered([(run, outcome)], answers)
                return
        self.owed -= 1
        self._dropped(run, f"{outcome.kind} could not be delivered before its lease ended")

    def _answered(self, batch: list[tuple[Run, Outcome]], answers: list[bool]) -> None:
        self._answers += 1
        self.owed -= len(batch)
        for (run, outcome), accepted in zip(batch, answers, strict=True):
            if accepted:
                self._settled(run, outcome)
            else:
                self._dropped(run, "another worker or an operator has taken it")


def _is_at_fault(error: Exception) -> bool:
    """Say whether an outcome itself is what the store chokes on: trouble with the store has other types."""
    return isinstance(error, (ValidationError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError))


def _instead_of(run: Run, outcome: Outcome, error: Exception) -> Outcome:
    """Return the outcome to store when the store cannot hold the real one: plain, and it says so."""
    task, result = run.reserved, outcome.result
    return Outcome.failed(
        task.id,
        task.fence,
        Result(
            task_id=task.id,
            status="failed",
            error=f"its outcome ({outcome.kind}) could not be stored: {type(error).__name__}",
            reason=Reason.ERROR,
            attempts=max(task.attempt, 1),
            enqueued_at=task.created_at,
            started_at=run.started_at,
            finished_at=result.finished_at if result else utcnow(),
        ),
    )
