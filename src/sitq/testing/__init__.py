"""Helpers for the tests of applications and backends."""

from __future__ import annotations

from sitq.testing.faulty import Fault, FaultyBackend, InjectedError, Plan

__all__ = ["Fault", "FaultyBackend", "InjectedError", "Plan"]
