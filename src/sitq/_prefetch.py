"""How many tasks a worker reserves beyond its free slots: a pure decision over the pace of its tasks."""

from __future__ import annotations

__all__ = ["FEW", "GIVE_BACK_AFTER", "adapted", "prefetch_limit", "smoothed"]

FEW = 250  # tasks: any machine works off so many in time
_AHEAD = 0.05
GIVE_BACK_AFTER = 0.1  # seconds a reserved task may wait for a slot before it is handed back


def prefetch_limit(slots: int, average: float | None, most: int) -> int:
    """Return how many tasks to hold ready for `slots` slots, when one takes `average` seconds (None: not known yet).

    As many as the slots work off in 50 ms, up to `most`: short tasks flow in large batches, long ones are not hoarded.
    """
    if average is None or average >= _AHEAD:
        return 0
    return min(most, int(slots * _AHEAD / max(average, 1e-6)))


def adapted(most: int, waited: float, limit: int) -> int:
    """Return how many to hold ready at most, up to `limit`, when a task `waited` so many seconds for its slot.

    How long a task takes says little where all of them wait for the event loop: a busy machine works off 1,000 of the
    shortest in 125 ms.
    """
    return max(most // 2, min(FEW, limit)) if waited > _AHEAD else min(most + most // 4, limit)


def smoothed(average: float | None, duration: float) -> float:
    """Return the moving average after one more task.

    A longer task counts at once, half, so that a change from short to long tasks stops the prefetch within a few.
    """
    if average is None:
        return duration
    return average + (duration - average) * (0.5 if duration > average else 0.1)
