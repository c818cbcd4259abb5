"""Why does this task not run? A pure function from what the store knows to an answer in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sitq.cli._health import serves
from sitq.cli._text import age, clock_time, duration
from sitq.core import Phase, QueueCounts, Reason, Result, Task, TaskOptions, WorkerInfo, phase_of
from sitq.retry import UNRESOLVABLE_FOR

__all__ = ["Ahead", "Answer", "Facts", "Obstacle", "ahead_of", "explain"]

_UNRESOLVABLE = "unresolvable since "


@dataclass(frozen=True, slots=True)
class Ahead:
    """How many ready tasks of its queue come before a task; `complete` is False when there are too many to count."""

    higher: int = 0
    older: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the store knows. `counts` and `workers` are None where it cannot be inspected.

    `running` is how many tasks the workers that serve the task's queue hold.
    """

    task: Task
    now: datetime
    result: Result | None = None
    counts: QueueCounts | None = None
    workers: Sequence[WorkerInfo] | None = None
    ahead: Ahead | None = None
    running: int = 0


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that keeps the task from running: a word for programs, a sentence, and what to do."""

    code: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The phase of the task, what keeps it from running (the first thing first), and what else is worth knowing."""

    phase: Phase
    obstacles: Sequence[Obstacle]
    notes: Sequence[str] = ()


def explain(facts: Facts) -> Answer:
    """Answer the question."""
    phase = phase_of(facts.task, facts.now)
    if phase in (Phase.RUNNING, Phase.STALLED):
        obstacles = [_running(facts, phase)]
    elif phase in (Phase.SCHEDULED, Phase.READY, Phase.RETRYING):
        obstacles = _waiting(facts, phase)
    else:
        obstacles = [_ended(facts, phase)]
    return Answer(phase=phase, obstacles=obstacles, notes=_notes(facts, phase))


def ahead_of(task: Task, ready: Sequence[Task], complete: bool = True) -> Ahead:
    """Count which of the ready tasks of its queue are handed out before `task`."""
    priority, due = _order(task)
    others = [_order(other) for other in ready if other.id != task.id]
    return Ahead(
        higher=sum(other > priority for other, _ in others),
        older=sum(other == priority and moment < due for other, moment in others),
        complete=complete,
    )


def _order(task: Task) -> tuple[int, datetime]:
    return (task.options or TaskOptions()).priority, max(task.created_at, task.eta or task.created_at)


# --- it waits ---------------------------------------------------------------------------------------------------------


def _waiting(facts: Facts, phase: Phase) -> list[Obstacle]:
    """Return all that is in its way; when there is nothing, that it should start now."""
    found = [_not_due(facts, phase)] if phase != Phase.READY else []
    queue = _queue(facts)
    if facts.counts is not None and facts.counts.paused:
        found.append(Obstacle("paused", f"Its queue {queue!r} is paused.", f"sitq resume {queue}"))
    if facts.workers is not None and not any(serves(worker, queue) for worker in facts.workers):
        found.append(_unserved(facts.workers, queue))
    elif phase == Phase.READY:
        found += _in_line(facts)
    if found:
        return found
    if facts.workers is None:
        return [Obstacle("unknown", "It is ready; this store cannot say which workers are alive, or what is ahead.")]
    return [Obstacle("next", "Nothing is in its way: a worker takes it when it looks next, within seconds.")]


def _not_due(facts: Facts, phase: Phase) -> Obstacle:
    task, reason = facts.task, facts.task.reason
    when = f"{age(task.eta, facts.now)}, at {clock_time(task.eta)}" if task.eta else ""
    if reason is not None and reason.startswith(_UNRESOLVABLE):
        since = datetime.fromisoformat(reason.removeprefix(_UNRESOLVABLE))
        return Obstacle(
            "unresolvable",
            f"No worker could import {task.name} since {clock_time(since)} ({age(since, facts.now)}); the next try is "
            f"{when}, and {clock_time(since + UNRESOLVABLE_FOR)} is the last moment.",
            "deploy the code that defines it, or start the workers where it can be imported",
        )
    if phase == Phase.RETRYING:
        why = f" ({reason})" if reason else ""
        return Obstacle("retrying", f"Run {task.attempt} did not succeed{why}; the next one is {when}.")
    if reason is not None:
        return Obstacle("deferred", f"It asked to be run later ({reason}): {when}.")
    return Obstacle("scheduled", f"It is due {when}.")


def _unserved(workers: Sequence[WorkerInfo], queue: str) -> Obstacle:
    advice = f"sitq worker app:queue --queues {queue}"
    if not workers:
        return Obstacle("no_worker", "No worker is alive.", advice)
    named = sorted({name for worker in workers for name in worker.queues or ()})
    return Obstacle(
        "no_worker",
        f"No live worker serves its queue {queue!r}; those alive serve {', '.join(named)}.",
        advice,
    )


def _in_line(facts: Facts) -> list[Obstacle]:
    found, ahead = [], facts.ahead
    if ahead is not None and (ahead.higher or ahead.older):
        parts = [f"{ahead.higher:,} of higher priority"] if ahead.higher else []
        parts += [f"{ahead.older:,} due earlier"] if ahead.older else []
        least = "" if ahead.complete else "at least "
        text = f"It waits behind {least}{' and '.join(parts)} in its queue."
        found.append(Obstacle("behind", text, "start more workers, or enqueue with a priority"))
    serving = sum(serves(worker, _queue(facts)) for worker in facts.workers or ())
    if facts.running:
        workers = "The worker of its queue is" if serving == 1 else f"The {serving} workers of its queue are"
        tasks = f"{facts.running:,} task{'' if facts.running == 1 else 's'}"
        text = f"{workers} busy with {tasks}; it starts when one has room."
        found.append(Obstacle("busy", text, "start more workers, or raise --concurrency"))
    return found


# --- it runs, or has ended --------------------------------------------------------------------------------------------


def _running(facts: Facts, phase: Phase) -> Obstacle:
    task = facts.task
    if phase == Phase.STALLED:
        queue = _queue(facts)
        alone = facts.workers is not None and not any(serves(worker, queue) for worker in facts.workers)
        then = "no worker is alive to take it over" if alone else "another worker takes it over when it has room"
        return Obstacle(
            "stalled",
            f"Its worker {task.worker_id} is lost: the lease ended {age(task.lease_expires_at, facts.now)}; {then}.",
            f"sitq worker app:queue --queues {queue}" if alone else "",
        )
    text = f"It is running on {task.worker_id}, attempt {task.attempt}."
    if task.cancel_requested:
        return Obstacle("stopping", f"{text} It was asked to stop.")
    return Obstacle("running", text)


_ENDED = {
    Reason.CANCELLED: "It was cancelled",
    Reason.EXPIRED: "It expired before it was started",
    Reason.QUARANTINED: "It was put into quarantine, for it kept ending its process",
    Reason.DISCARDED: "It gave itself up",
    Reason.TIMEOUT: "It took longer than its timeout",
    Reason.UNDECODABLE: "No worker could decode its call",
}


def _ended(facts: Facts, phase: Phase) -> Obstacle:
    task, result = facts.task, facts.result
    when = f" {age(result.finished_at, facts.now)}" if result and result.finished_at else ""
    if phase == Phase.COMPLETED:
        return Obstacle("completed", f"It completed{when}.", f"sitq show {task.id}")
    words = _ENDED.get(Reason(task.reason)) if task.reason in list(Reason) else None
    error = f": {result.error}" if result and result.error else ""
    return Obstacle(phase.value, f"{words or 'It failed'}{when}{error}.", f"to run it again: sitq retry {task.id}")


def _notes(facts: Facts, phase: Phase) -> list[str]:
    task, options = facts.task, facts.task.options or TaskOptions()
    notes = []
    live = phase in (Phase.SCHEDULED, Phase.READY, Phase.RETRYING, Phase.RUNNING, Phase.STALLED)
    if options.unique is not None and live:
        notes.append(
            f"It holds the unique key {options.unique!r}: to enqueue with that key gives this task, not a new one."
        )
    if options.expires_at is not None and phase in (Phase.SCHEDULED, Phase.READY, Phase.RETRYING):
        notes.append(f"It expires {age(options.expires_at, facts.now)}.")
    if task.crashes and live:
        notes.append(f"{task.crashes} of its runs ended with their worker; after more of them it goes into quarantine.")
    if phase == Phase.READY and task.reason and not task.reason.startswith(_UNRESOLVABLE):
        notes.append(f"Last time: {task.reason}.")
    if phase == Phase.READY:
        due = max(task.created_at, task.eta or task.created_at)
        notes.append(f"It has been ready for {duration(max(0.0, (facts.now - due).total_seconds()))}.")
    return notes


def _queue(facts: Facts) -> str:
    return (facts.task.options or TaskOptions()).queue
