"""Whether a failed attempt is repeated, and when: pure decisions, no I/O."""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import datetime, timedelta

from sitq.core import Retry
from sitq.functions import TaskSettings

__all__ = ["UNRESOLVABLE_FOR", "backoff", "quarantined", "retry_delay", "unresolvable_delay"]

_ONCE = Retry(max_attempts=1)
_SOLO_CRASHES = 3
_CRASHES = 10
UNRESOLVABLE_FOR = timedelta(hours=24)
_SINCE = "unresolvable since "


def retry_delay(error: BaseException, attempt: int, retry: Retry | None, settings: TaskSettings) -> float | None:
    """Return in how many seconds to try again after attempt number `attempt` raised `error`; None: give up."""
    policy = retry or _ONCE
    if attempt >= policy.max_attempts or isinstance(error, settings.give_up_on):
        return None
    if not isinstance(error, settings.retry_on):
        return None
    return backoff(attempt, policy.base, policy.cap)


def backoff(attempt: int, base: float, cap: float) -> float:
    """Return a delay drawn evenly from 0 to `min(cap, base * 2 ** (attempt - 1))` seconds.

    Full jitter spreads what failed together (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).
    """
    return random.uniform(0.0, min(cap, base * 2.0 ** min(attempt - 1, 60)))  # noqa: S311 (not a secret)


def quarantined(crashes: int, solo_crashes: int) -> bool:
    """Say whether a task has ended its process often enough to be kept from running again.

    Only crashes in a child it had to itself prove guilt, so three of those suffice. A task that takes the whole worker
    with it from there (it kills its parent, or eats all memory) shows only lost leases: ten of them.
    """
    return solo_crashes >= _SOLO_CRASHES or crashes >= _CRASHES


def unresolvable_delay(reason: str | None, now: datetime) -> tuple[float, str] | None:
    """Return how long a task waits for its function to be deployed, and the reason to store; None after 24 hours.

    `reason` is what the last worker stored: it carries the moment the wait began, from worker to worker.
    """
    since = now
    if reason is not None and reason.startswith(_SINCE):
        with suppress(ValueError):  # a reason of the task's own that begins like ours
            since = datetime.fromisoformat(reason.removeprefix(_SINCE))
    waited = (now - since).total_seconds()
    if waited >= UNRESOLVABLE_FOR.total_seconds():
        return None
    return min(300.0, max(1.0, waited)) * random.uniform(0.5, 1.0), f"{_SINCE}{since.isoformat()}"  # noqa: S311
