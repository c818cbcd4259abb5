"""The two clocks of the store: wall time for what is due, the lease clock, which no step of that moves, for leases."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["Clock", "boot_id", "survives_steps"]

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)  # counts through suspend, unlike `time.monotonic` on Linux


class Clock:
    """Seconds, by both clocks. Tests move `offset`; handles that are clones of each other share it."""

    __slots__ = ("offset",)

    def __init__(self) -> None:
        self.offset = 0.0

    def now(self) -> float:
        """Return seconds since 1970."""
        return time.time() + self.offset

    def lease_now(self) -> float:
        """Return seconds on the lease clock: since boot, or wall time where the system has no such clock."""
        return (time.time() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)) + self.offset


def survives_steps() -> bool:
    """Say whether the lease clock is apart from wall time on this system."""
    return _BOOTTIME is not None


def boot_id() -> str:
    """Name the running boot: another name means that all leases are void."""
    if _BOOTTIME is None:
        return "wall"
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
