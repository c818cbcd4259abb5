"""Waiting in tests: for a condition, with a deadline that only a hang meets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["DEADLINE", "until"]

DEADLINE = 60.0


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str = "the condition") -> None:
    """Return when `condition` holds; fail when that takes as long as only a hang does."""
    deadline = time.monotonic() + DEADLINE
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, f"{what} did not come"
        await asyncio.sleep(0.005)
