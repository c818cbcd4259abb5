"""The conformance suite over SQLite, in a file and in memory."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sitq import SQLiteBackend
from sitq.backends.base import Backend
from sitq.conformance import BackendSuite


def _advance(backend: Backend, seconds: float) -> None:
    assert isinstance(backend, SQLiteBackend)
    backend._clock.offset += seconds


class TestSQLiteFile(BackendSuite):
    persistent = True

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return partial(SQLiteBackend, tmp_path / "tasks.db")

    def advance(self, backend: Backend, seconds: float) -> None:
        _advance(backend, seconds)

    def transaction(self, backend: Backend) -> AbstractAsyncContextManager[Any]:
        assert isinstance(backend, SQLiteBackend)
        return _transaction(backend.path)

    def sabotage(self, backend: Backend) -> None:
        assert isinstance(backend, SQLiteBackend)
        with closing(sqlite3.connect(backend.path)) as connection:
            connection.execute("DROP TABLE sitq_tasks")


class TestSQLiteMemory(BackendSuite):
    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return partial(SQLiteBackend, ":memory:")

    def advance(self, backend: Backend, seconds: float) -> None:
        _advance(backend, seconds)


@asynccontextmanager
async def _transaction(path: str) -> AsyncIterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA synchronous = FULL")
        yield connection
