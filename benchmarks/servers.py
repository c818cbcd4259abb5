"""sitq in PostgreSQL and in Redis, beside its own statements and its own script on one connection.

The servers are throw-away ones of the tests, on free ports, or those that SITQ_TEST_POSTGRES_URL and
SITQ_TEST_REDIS_URL name.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from benchmarks import processes
from benchmarks.figures import Figure, Scale, paired, single
from benchmarks.latency import other_process, quantile
from benchmarks.raw_postgres import RawPostgres
from benchmarks.raw_redis import RawRedis
from benchmarks.speed import Files, Way, by_coroutines, enqueue_rate, fill, in_bulk
from servers.postgres import PostgresServer
from servers.redis import RedisServer

__all__ = ["RawStore", "postgres", "postgres_store", "redis", "redis_store"]


class RawStore(Protocol):
    """A store on a server, and what it does when nothing of sitq but its statements is in the way."""

    @property
    def name(self) -> str:
        """What the figures call it."""

    @property
    def version(self) -> str:
        """Which server it is."""

    def fresh(self) -> str:
        """Return the URL of a new, empty store; the one before is deleted."""

    def has_work(self) -> bool:
        """Say whether something is queued or runs."""

    def insert(self, count: int, batch: int) -> float:
        """Store tasks, `batch` at a time; return the seconds it took."""

    def drain(self) -> tuple[int, float]:
        """Reserve and complete everything; return how many, and the seconds it took."""


class _Server(Protocol):
    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def remove(self) -> None: ...


@contextmanager
def postgres_store() -> Iterator[RawStore]:
    """Have a PostgreSQL that syncs to disk."""
    make = partial(PostgresServer, fsync=True)
    with _running("SITQ_TEST_POSTGRES_URL", make) as url, closing(RawPostgres(url)) as store:
        yield store


@contextmanager
def redis_store() -> Iterator[RawStore]:
    """Have a Valkey that keeps everything in memory."""
    make = partial(RedisServer, "valkey")
    with _running("SITQ_TEST_REDIS_URL", make) as url, closing(RawRedis(url)) as store:
        yield store


@contextmanager
def _running(variable: str, make: Callable[[], _Server]) -> Iterator[str]:
    """Return the URL of the server that is named, or of one that is removed afterwards."""
    if named := os.environ.get(variable):
        yield named
        return
    server = make()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


# --- measurements -----------------------------------------------------------------------------------------------------


def postgres(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure sitq in PostgreSQL, with `durability="full"`."""
    with postgres_store() as store:
        yield from _measure(store, scale, "2 ms")


def redis(scale: Scale, files: Files) -> Iterator[Figure]:
    """Measure sitq in Redis, with `durability="relaxed"`."""
    with redis_store() as store:
        yield from _measure(store, scale, "1.5 ms")


def _measure(store: RawStore, scale: Scale, wanted_latency: str) -> Iterator[Figure]:
    print(f"{store.name}: {store.version}", file=sys.stderr)
    yield from _enqueue(store, scale)
    yield from _drain(store, scale)
    yield from _latency(store, scale, wanted_latency)


def _enqueue(store: RawStore, scale: Scale) -> Iterator[Figure]:
    ways: list[tuple[str, Way, int]] = [("100 coroutines", by_coroutines, 100), ("bulk", in_bulk, 1000)]
    for name, way, batch in ways:
        ours = partial(_enqueue_rate, store, scale, way)
        limit = partial(_raw_enqueue_rate, store, scale, batch)
        limit_name = f"raw, {batch} at a time"
        yield paired(f"{store.name}: enqueue, {name}", "tasks/s", scale, ours, limit, limit_name=limit_name)


def _enqueue_rate(store: RawStore, scale: Scale, way: Way) -> float:
    return enqueue_rate(store.fresh(), way, scale.tasks)


def _raw_enqueue_rate(store: RawStore, scale: Scale, batch: int) -> float:
    store.fresh()
    return scale.tasks / store.insert(scale.tasks, batch)


def _drain(store: RawStore, scale: Scale) -> Iterator[Figure]:
    limit = partial(_raw_drain_rate, store, scale)
    for concurrency in (10, 100):
        ours = partial(_drain_rate, store, scale, concurrency)
        name = f"{store.name}: drain, 1 process, concurrency {concurrency}"
        yield paired(name, "tasks/s", scale, ours, limit, wanted="0.35 of raw")


def _drain_rate(store: RawStore, scale: Scale, concurrency: int) -> float:
    url = store.fresh()
    fill(url, scale.tasks)
    with processes.workers(url, concurrency=concurrency) as started:
        return scale.tasks / processes.seconds_of_work(store.has_work, started)


def _raw_drain_rate(store: RawStore, scale: Scale) -> float:
    fill(store.fresh(), scale.tasks)
    done, seconds = store.drain()
    return done / seconds


def _latency(store: RawStore, scale: Scale, wanted: str) -> Iterator[Figure]:
    runs = [other_process(store.fresh(), scale.rounds) for _ in range(min(scale.pairs, 3))]
    starts = [[start for start, _ in run] for run in runs]
    name = f"{store.name}: to start, other process"
    yield single(f"{name}, p50", "ms", [statistics.median(run) for run in starts], wanted)
    yield single(f"{name}, p99", "ms", [quantile(run, 0.99) for run in starts])
