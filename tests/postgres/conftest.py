"""Fixtures for the tests that know PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest

from servers.postgres import PostgresServer, fresh_postgres, postgres_url
from sitq.backends.postgres import PostgresBackend


@pytest.fixture(scope="session", autouse=True)
def server() -> str:
    """Start the server of this process before the first test counts its child processes; return its URL."""
    return postgres_url()


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """Start a server that may crash."""
    server = PostgresServer(fsync=True)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def make_backend() -> Callable[..., PostgresBackend]:
    """Return what makes backends on one fresh schema."""
    return fresh_postgres()


@pytest.fixture
async def backend(make_backend: Callable[..., PostgresBackend]) -> AsyncIterator[PostgresBackend]:
    """Return a connected backend on a fresh schema."""
    async with make_backend() as backend:
        yield backend


@pytest.fixture
def sql(server: str, make_backend: Callable[..., PostgresBackend]) -> Iterator[Callable[..., list[Any]]]:
    """Return what runs a statement, `{s}` being the schema, and gives its rows."""
    schema = make_backend()._settings.schema
    with psycopg.connect(server, autocommit=True) as connection:

        def run(statement: str, *values: Any) -> list[Any]:
            cursor = connection.execute(statement.replace("{s}", schema).encode(), values or None)
            return cursor.fetchall() if cursor.description else []

        yield run
