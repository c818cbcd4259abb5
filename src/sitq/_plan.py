"""What a worker does with the store it was given, decided once, after connect: nothing degrades silently."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sitq.backends.base import Backend, Capability
from sitq.core import WorkerInfo
from sitq.exceptions import UnsupportedError

__all__ = ["Plan", "plan_for"]

logger = logging.getLogger("sitq")


@dataclass(frozen=True, slots=True)
class Plan:
    """How to work with this store: it remembers delays, it needs a heartbeat, it can be purged."""

    defer: bool
    leases: bool
    inspect: bool
    poll_interval: float

    def describe(self, info: WorkerInfo, slots: int) -> str:
        """Say it in a log line."""
        queues = "all queues" if info.queues is None else "queues " + ", ".join(info.queues)
        return f"{slots} at a time from {queues}, looking at least every {self.poll_interval:g} s"


def plan_for(backend: Backend, info: WorkerInfo, poll_interval: float | None) -> Plan:
    """Make the plan. Raises `UnsupportedError` for what the store cannot do at all."""
    has, name = backend.capabilities, type(backend).__name__
    if info.queues is not None and Capability.QUEUES not in has:
        raise UnsupportedError(f"{name} lacks the capability QUEUES: leave out `queues`, or choose a store that has it")
    if Capability.LEASES not in has:
        logger.warning("%s lacks LEASES: tasks of a killed worker stay running until an operator requeues them", name)
    if Capability.DEFER not in has:
        logger.info("%s lacks DEFER: retries and later tasks wait inside this worker", name)
    return Plan(
        defer=Capability.DEFER in has,
        leases=Capability.LEASES in has,
        inspect=Capability.INSPECT in has,
        poll_interval=backend.poll_interval if poll_interval is None else poll_interval,
    )
