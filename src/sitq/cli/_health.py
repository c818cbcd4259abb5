"""What an operator should know of queues and workers: pure functions of what the store counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sitq.cli._text import duration
from sitq.core import Finding, Phase, QueueCounts, Verdict, WorkerInfo

__all__ = ["concerns", "serves", "unserved"]

WAITING = (Phase.SCHEDULED, Phase.READY, Phase.RETRYING)


def serves(worker: WorkerInfo, queue: str) -> bool:
    """Say whether a worker takes tasks of a queue."""
    return worker.queues is None or queue in worker.queues


def unserved(counts: Sequence[QueueCounts], workers: Sequence[WorkerInfo]) -> list[QueueCounts]:
    """Return the queues where tasks are ready and no worker takes them, though they are not paused."""
    return [
        queue
        for queue in counts
        if queue.phases.get(Phase.READY) and not queue.paused and not any(serves(w, queue.queue) for w in workers)
    ]


def concerns(counts: Sequence[QueueCounts], workers: Sequence[WorkerInfo], now: datetime) -> list[Finding]:
    """Return what is not as it should be, worst first."""
    found = []
    for queue in unserved(counts, workers):
        number, waited = queue.phases[Phase.READY], _waited(queue, now)
        found.append(
            Finding(
                name=f"queue {queue.queue}",
                value=f"{_tasks(number)} ready and no worker serves it{waited}",
                verdict=Verdict.BAD,
                advice=f"start one: sitq worker app:queue --queues {queue.queue}",
                number=number,
            )
        )
    for queue in counts:
        if stalled := queue.phases.get(Phase.STALLED, 0):
            found.append(
                Finding(
                    name=f"queue {queue.queue}",
                    value=f"{_tasks(stalled)} stalled: the lease ended and no worker has taken over",
                    verdict=Verdict.WARN,
                    advice="look whether workers are alive and have room: sitq status",
                    number=stalled,
                )
            )
        waiting = sum(queue.phases.get(phase, 0) for phase in WAITING)
        if queue.paused and waiting:
            found.append(
                Finding(
                    name=f"queue {queue.queue}",
                    value=f"paused while {_tasks(waiting)} wait in it",
                    verdict=Verdict.WARN,
                    advice=f"let it go on: sitq resume {queue.queue}",
                    number=waiting,
                )
            )
    return found


def _tasks(number: int) -> str:
    return f"{number:,} task{'' if number == 1 else 's'}"


def _waited(queue: QueueCounts, now: datetime) -> str:
    if queue.oldest_ready is None:
        return ""
    return f"; the oldest has waited {duration(max(0.0, (now - queue.oldest_ready).total_seconds()))}"
