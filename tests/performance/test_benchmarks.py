"""The benchmarks run: the figures in the documentation are theirs, so they must not break unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks import raw
from benchmarks.__main__ import MEASUREMENTS, ON_SERVERS
from benchmarks.figures import Scale
from benchmarks.servers import RawStore, postgres_store, redis_store
from benchmarks.speed import Files, fill
from benchmarks.worker import make_store, queue_of
from sitq.core import QueueCounts

SMALL = Scale(pairs=1, tasks=400, rounds=3, idle_seconds=0.1, deep_rows=200)


def test_the_raw_store_ends_every_task(tmp_path: Path) -> None:
    path = str(tmp_path / "raw.db")
    make_store(path)
    fill(path, 250)
    done, _ = raw.drain(path)
    connection = raw.connect(path)
    states = connection.execute("SELECT status, outcome, count(*) FROM sitq_tasks GROUP BY 1, 2").fetchall()
    connection.close()
    assert done == 250
    assert states == [(2, "success", 250)]


@pytest.mark.parametrize("make", [postgres_store, redis_store])
def test_the_raw_store_on_a_server_ends_every_task(make: Callable[[], AbstractContextManager[RawStore]]) -> None:
    with make() as store:
        url = store.fresh()

        async def count() -> list[QueueCounts]:
            async with queue_of(url) as queue:
                return await queue.backend.count_tasks()

        store.insert(250, 100)
        assert store.has_work()
        done, _ = store.drain()
        assert done == 250
        assert not store.has_work()
        assert [queue.phases for queue in asyncio.run(count())] == [{"completed": 250}]


@pytest.mark.parametrize("name", MEASUREMENTS | ON_SERVERS)
def test_a_measurement_gives_figures(tmp_path: Path, name: str) -> None:
    figures = list((MEASUREMENTS | ON_SERVERS)[name](SMALL, Files(tmp_path / "bench")))
    assert figures
    assert all(figure.sitq >= 0 for figure in figures)
