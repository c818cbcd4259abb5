"""The limit in PostgreSQL: sitq's schema and statements, by plain `asyncpg` on one connection.

Encoding and objects are left out; the rows are made before the clock starts. Commits that accept wait for the disk,
the others do not, as with `durability="full"`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from benchmarks.raw import BATCH, RESULT, tasks
from benchmarks.worker import make_store
from sitq.backends.postgres._accept import CALL, call_values
from sitq.backends.postgres._connect import Clock, Settings, Tx, connect, render, transaction
from sitq.backends.postgres._reserve import RESERVE
from sitq.backends.postgres._rows import new_row
from sitq.backends.postgres._schema import enter_epoch
from sitq.backends.postgres._settle import END, worker_values
from sitq.core import WorkerInfo

__all__ = ["RawPostgres"]

_ID, _CREATED, _FENCE = 0, 5, 10  # in a row of RESERVE
# By the indexes of what is queued and what runs, however many have ended.
_HAS_WORK = """
SELECT EXISTS (SELECT FROM {s}.sitq_tasks WHERE status = 0) OR EXISTS (SELECT FROM {s}.sitq_tasks WHERE status = 1)
"""


class RawPostgres:
    """A database, and one store after the other in it: a schema of this process."""

    name = "PostgreSQL"

    def __init__(self, url: str) -> None:
        schema = f"sitq_bench_{os.getpid()}"
        self._settings = Settings(dsn=url, schema=schema)
        self._store = f"{url}{'&' if '?' in url else '?'}schema={schema}"
        self._session = psycopg.connect(url, autocommit=True)
        self._session.execute("SET enable_seqscan = off")

    @property
    def version(self) -> str:
        """Which server it is."""
        return self._session.info.parameter_status("server_version") or ""

    def fresh(self) -> str:
        """Return the URL of a new, empty store; the one before is deleted."""
        self._delete()
        make_store(self._store)
        return self._store

    def has_work(self) -> bool:
        """Say whether something is queued or runs."""
        row = self._session.execute(self._sql(_HAS_WORK).encode()).fetchone()
        return row is not None and bool(row[0])

    def insert(self, count: int, batch: int) -> float:
        """Insert rows, `batch` to a commit; return the seconds it took."""
        rows = [new_row(task) for task in tasks(count)]
        parts = [call_values(rows[at : at + batch]) for at in range(0, count, batch)]

        async def go() -> float:
            async with self._connected() as connection:
                insert = await connection.prepare(self._sql(CALL))
                begin = time.perf_counter()
                for part in parts:
                    await insert.fetch(0.0, None, *part)
                return time.perf_counter() - begin

        return asyncio.run(go())

    def drain(self) -> tuple[int, float]:
        """Reserve and complete everything, each batch after the end of the one before.

        Return how many, and the seconds it took.
        """
        worker = worker_values(WorkerInfo(id=f"raw-{os.getpid()}"))

        async def go() -> tuple[int, float]:
            async with self._connected() as connection:
                end = await connection.prepare(self._sql(END))
                reserve = await connection.prepare(self._sql(RESERVE[False]))
                async with transaction(connection, self._settings):  # without one no task can be reserved
                    await enter_epoch(Tx(connection, self._settings, Clock()))
                begin = time.perf_counter()
                done = 0
                while True:
                    found = await reserve.fetch(0.0, "off", *worker, BATCH)
                    reserved = [row for row in found if row[_ID] is not None]
                    if not reserved:
                        return done, time.perf_counter() - begin
                    done += len(await end.fetch(0.0, "off", *_ends(reserved)))

        return asyncio.run(go())

    def close(self) -> None:
        """Delete the store, and disconnect."""
        self._delete()
        self._session.close()

    def _delete(self) -> None:
        self._session.execute(self._sql("DROP SCHEMA IF EXISTS {s} CASCADE").encode())

    def _sql(self, sql: str) -> str:
        return render(sql, self._settings.schema)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        connection = await connect(self._settings)
        try:
            yield connection
        finally:
            await connection.close()


def _ends(reserved: list[Any]) -> tuple[list[Any], ...]:
    """Return the values by which the store completes reserved tasks."""
    count, now = len(reserved), time.time()
    nothing = [None] * count
    return (
        [row[_ID] for row in reserved], [row[_FENCE] for row in reserved], [2] * count, ["success"] * count,
        [RESULT] * count, nothing, nothing, nothing, [1] * count, [row[_CREATED].timestamp() for row in reserved],
        [now] * count, [now] * count,
    )  # fmt: skip
