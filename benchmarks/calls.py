"""The tasks that are measured. A worker process imports them from here."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Slots", "echo", "nap", "plain", "size_of", "slots", "stamp"]


async def echo(value: int) -> int:
    """Return the argument: the least a task can do."""
    return value


def plain(value: int) -> int:
    """Return the argument, in a thread or a child process."""
    return value


async def size_of(data: bytes) -> int:
    """Return how much came."""
    return len(data)


async def stamp() -> float:
    """Return the moment it ran, on the clock that all processes share."""
    return time.monotonic()


class Slots:
    """How many tasks have run at the same time, on average between the first and the last start."""

    def __init__(self) -> None:
        self.busy = 0
        self.area = 0.0
        self.since = self.first = self.last = 0.0
        self.area_at_last = 0.0

    def step(self, change: int) -> None:
        """Count one task more or less."""
        now = time.monotonic()
        self.area += self.busy * (now - self.since) if self.since else 0.0
        self.since = now
        self.busy += change
        if change > 0:
            self.first = self.first or now
            self.last, self.area_at_last = now, self.area

    def average(self) -> float:
        """Return the average."""
        return self.area_at_last / (self.last - self.first)


_slots = Slots()


async def nap(seconds: float) -> None:
    """Sleep, and be counted meanwhile."""
    _slots.step(1)
    try:
        await asyncio.sleep(seconds)
    finally:
        _slots.step(-1)


async def slots() -> float:
    """Return how many naps there were at a time."""
    return _slots.average()
