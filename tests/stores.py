"""The built-in stores, each made fresh in a test's own folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from servers.postgres import fresh_postgres, postgres_url
from servers.redis import fresh_redis, redis_url
from sitq import MemoryBackend, SQLiteBackend
from sitq.backends.base import Backend

__all__ = ["SERVERS", "STORES"]


def _memory(_folder: Path) -> Backend:
    return MemoryBackend()


def _sqlite(folder: Path) -> Backend:
    return SQLiteBackend(folder / "tasks.db")


def _sqlite_memory(_folder: Path) -> Backend:
    return SQLiteBackend(":memory:")


def _postgres(_folder: Path) -> Backend:
    return fresh_postgres()()


def _valkey(_folder: Path) -> Backend:
    return fresh_redis("valkey")()


STORES: Mapping[str, Callable[[Path], Backend]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "sqlite-memory": _sqlite_memory,
    "postgres": _postgres,
    "valkey": _valkey,
}

SERVERS: Mapping[str, Callable[[], str]] = {"postgres": postgres_url, "valkey": partial(redis_url, "valkey")}
"""What starts the server of a store, once for each process of the test run."""
