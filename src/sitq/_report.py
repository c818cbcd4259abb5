"""What a worker says of its work: log lines, events and counts."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sitq.core import Outcome, OutcomeKind, Reason
from sitq.events import EventName, Listeners

if TYPE_CHECKING:
    from sitq._execute import Run

__all__ = ["Reporter"]

logger = logging.getLogger("sitq")

_EVENT: Mapping[str, EventName] = {
    OutcomeKind.COMPLETED: EventName.SUCCEEDED,
    OutcomeKind.FAILED: EventName.FAILED,
    OutcomeKind.DEFERRED: EventName.DEFERRED,
    OutcomeKind.RELEASED: EventName.RELEASED,
}


class Reporter:
    """Speaks for one worker."""

    def __init__(self, listeners: Listeners, worker_id: str) -> None:
        self.counts: Counter[str] = Counter()
        self._listeners = listeners
        self._worker_id = worker_id

    def worker(self, name: EventName, detail: str = "") -> None:
        """The worker itself has started or stopped."""
        logger.info("worker %s %s%s", self._worker_id, name.removeprefix("worker_"), detail and f": {detail}")
        self._listeners.emit(name, worker_id=self._worker_id)

    def started(self, run: Run) -> None:
        """A task is about to run."""
        if self._listeners.wanted(EventName.STARTED):
            self._tell(EventName.STARTED, run)

    def settled(self, run: Run, outcome: Outcome) -> None:
        """The store has taken an outcome."""
        self.counts[outcome.kind] += 1
        if outcome.kind == OutcomeKind.FAILED:
            self._failed(run, outcome)
        elif run.error is not None and outcome.kind != OutcomeKind.COMPLETED:
            said = _said(EventName.DEFERRED, run, reason=outcome.reason, delay=outcome.delay)
            logger.info("task %s (%s) again in %.1f s: %s", *_who(run), outcome.delay, outcome.reason, extra=said)
        event = _EVENT[outcome.kind]
        if self._listeners.wanted(event):
            error = outcome.result.error if outcome.result else None
            self._tell(event, run, reason=outcome.reason, error=error, delay=outcome.delay)

    def dropped(self, run: Run, why: str) -> None:
        """An outcome counts for nothing: the lease was lost."""
        said = _said(EventName.LEASE_LOST, run, reason=why)
        logger.warning("task %s (%s): %s; what it did here is not recorded", *_who(run), why, extra=said)
        self._tell(EventName.LEASE_LOST, run, reason=why)

    def _failed(self, run: Run, outcome: Outcome) -> None:
        result = outcome.result
        detail = f"\n{result.traceback}" if result and result.traceback else ""
        level = logging.INFO if outcome.reason in (Reason.CANCELLED, Reason.DISCARDED) else logging.ERROR
        error = result.error if result else ""
        trace = result.traceback if result else None
        said = _said(EventName.FAILED, run, reason=outcome.reason, error=error, traceback=trace)
        text = "task %s (%s) failed (%s): %s%s"
        logger.log(level, text, *_who(run), outcome.reason, error, detail.rstrip(), extra=said)
        if outcome.reason == Reason.QUARANTINED:
            self._tell(EventName.QUARANTINED, run, reason=outcome.reason, error=error)

    def _tell(self, name: EventName, run: Run, **fields: object) -> None:
        self._listeners.emit(
            name,
            worker_id=self._worker_id,
            **_facts(run),
            **fields,
        )


def _facts(run: Run) -> dict[str, Any]:
    return {
        "task_id": run.reserved.id,
        "task_name": run.reserved.name,
        "queue": run.options.queue,
        "attempt": max(run.reserved.attempt, 1),
        "duration": None if run.started is None else time.monotonic() - run.started,
    }


def _said(name: EventName, run: Run, **fields: object) -> dict[str, Any]:
    """Return the fields of a log line for those who write it as data (`record.sitq`)."""
    return {"sitq": {"event": name.value, **_facts(run), **fields}}


def _who(run: Run) -> tuple[str, str]:
    return run.reserved.id, run.reserved.name
