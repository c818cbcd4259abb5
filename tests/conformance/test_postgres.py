"""The conformance suite over a real PostgreSQL, each test in a schema of its own."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest

from servers.postgres import fresh_postgres, postgres_url
from sitq.backends.base import Backend
from sitq.backends.postgres import PostgresBackend
from sitq.conformance import BackendSuite


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Start it before the first test counts its child processes."""
    postgres_url()


class TestPostgres(BackendSuite):
    persistent = True

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return fresh_postgres()

    def advance(self, backend: Backend, seconds: float) -> None:
        assert isinstance(backend, PostgresBackend)
        backend._clock.offset += seconds

    def transaction(self, backend: Backend) -> AbstractAsyncContextManager[Any]:
        return _transaction()

    def sabotage(self, backend: Backend) -> None:
        assert isinstance(backend, PostgresBackend)
        with psycopg.connect(postgres_url(), autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {backend._settings.schema} CASCADE".encode())


@asynccontextmanager
async def _transaction() -> AsyncIterator[Any]:
    connection = await asyncpg.connect(postgres_url())
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()
