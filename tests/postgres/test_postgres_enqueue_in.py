"""Enqueue inside the user's own transaction, on the connection of each library: commit, rollback, refusals."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sitq import BackendError, TaskQueue, ValidationError
from sitq.backends.postgres import PostgresBackend

Transaction = Callable[[str], AbstractAsyncContextManager[Any]]


def add(a: int, b: int) -> int:
    return a + b


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Any]:
    async with (
        asyncpg.create_pool(url, min_size=1, max_size=1) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield connection


@asynccontextmanager
async def psycopg_sync(url: str) -> AsyncIterator[Any]:
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        yield connection


@asynccontextmanager
async def psycopg_async(url: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, connection.transaction():
        yield connection


@asynccontextmanager
async def sqlalchemy_session(url: str) -> AsyncIterator[Any]:
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


@asynccontextmanager
async def sqlalchemy_connection(url: str) -> AsyncIterator[Any]:
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@asynccontextmanager
async def sqlalchemy_async_session(url: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    try:
        async with AsyncSession(engine) as session, session.begin():
            yield session
    finally:
        await engine.dispose()


@asynccontextmanager
async def sqlalchemy_async_psycopg(url: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


LIBRARIES: list[Transaction] = [
    asyncpg_connection, asyncpg_pool, psycopg_sync, psycopg_async, sqlalchemy_session, sqlalchemy_connection,
    sqlalchemy_async_session, sqlalchemy_async_psycopg,
]  # fmt: skip


@pytest.mark.parametrize("transaction", LIBRARIES, ids=lambda library: library.__name__)
class TestLibraries:
    async def test_commit(self, backend: PostgresBackend, server: str, transaction: Transaction) -> None:
        async with TaskQueue(backend) as queue:
            async with transaction(server) as connection:
                configured = queue.options(connection=connection, unique="k", expires=3600, context={"a": "ü%s$1"})
                handle = await configured.enqueue(add, 1, 2)
                again = await configured.enqueue(add, 3, 4)
                plain = await queue.options(connection=connection).enqueue(add, 5, 6)
                assert await backend.get_task(handle) is None
                assert await backend.get_task(plain) is None
            assert (handle.created, again.created, str(again)) == (True, False, str(handle))
            stored = await backend.get_task(handle)
            assert stored is not None
            assert stored.options is not None
            assert stored.options.context == {"a": "ü%s$1"}
            assert await backend.get_task(plain) is not None

    async def test_rollback(self, backend: PostgresBackend, server: str, transaction: Transaction) -> None:
        handles = []
        async with TaskQueue(backend) as queue:
            with suppress(ZeroDivisionError):
                async with transaction(server) as connection:
                    handles.append(await queue.options(connection=connection).enqueue(add, 1, 2))
                    handles.append(await queue.options(connection=connection, unique="k").enqueue(add, 1, 2))
                    raise ZeroDivisionError
            assert len(handles) == 2
            assert [await backend.get_task(handle) for handle in handles] == [None, None]


DJANGO = """
import sys
from django.conf import settings
from urllib.parse import urlsplit

url = urlsplit(sys.argv[1])
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": url.path[1:], "USER": url.username, "HOST": url.hostname,
    "PORT": url.port, "PASSWORD": url.password or "",
}})
import django
django.setup()
from django.db import connection, transaction
from sitq.backends.postgres import PostgresBackend
from sitq.sync import SyncTaskQueue

def task(): ...

backend = PostgresBackend(sys.argv[1], schema=sys.argv[2], signing_keys={"tests": b"the tests sign with this"})
with SyncTaskQueue(backend) as queue:
    with transaction.atomic():
        print(queue.options(connection=connection).enqueue(task))
    try:
        with transaction.atomic():
            print(queue.options(connection=connection).enqueue(task))
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    try:
        queue.options(connection=connection).enqueue(task)
    except ValueError as error:
        print(error)
"""


async def test_django(backend: PostgresBackend, server: str) -> None:
    """Django's `connection`, inside `atomic()`: in a process of its own, for its settings are global."""
    command = [sys.executable, "-c", DJANGO, server, backend._settings.schema]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: ASYNC221
    assert done.returncode == 0, done.stderr
    committed, rolled_back, refusal = done.stdout.splitlines()
    assert await backend.get_task(committed) is not None
    assert await backend.get_task(rolled_back) is None
    assert "atomic" in refusal


class TestRefusals:
    async def test_no_transaction(self, backend: PostgresBackend, server: str) -> None:
        """In autocommit mode a task would be stored whatever happens to the rest."""
        async with TaskQueue(backend) as queue:
            asyncpg_connection = await asyncpg.connect(server)
            with psycopg.connect(server, autocommit=True) as psycopg_connection:
                for connection in (asyncpg_connection, psycopg_connection):
                    with pytest.raises(ValidationError, match="open a transaction"):
                        await queue.options(connection=connection).enqueue(add, 1, 2)
            await asyncpg_connection.close()
        assert await backend.list_tasks() == []

    async def test_an_engine(self, backend: PostgresBackend, server: str) -> None:
        engine = sqlalchemy.create_engine(server.replace("postgresql:", "postgresql+psycopg:"))
        async with TaskQueue(backend) as queue:
            with pytest.raises(ValidationError, match="an engine has no transaction"):
                await queue.options(connection=engine).enqueue(add, 1, 2)
        engine.dispose()

    async def test_another_kind_of_database(self, backend: PostgresBackend) -> None:
        engine = sqlalchemy.create_engine("sqlite://")
        async with TaskQueue(backend) as queue:
            with engine.connect() as connection, pytest.raises(ValidationError, match="sqlite"):
                await queue.options(connection=connection).enqueue(add, 1, 2)
        engine.dispose()

    async def test_a_database_without_the_queue(self, backend: PostgresBackend, server: str) -> None:
        """The transaction is spoilt, and the error says why."""
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute("CREATE DATABASE elsewhere")
        try:
            async with TaskQueue(backend) as queue:
                connection = psycopg.connect(server, dbname="elsewhere")
                with connection, pytest.raises(BackendError, match="Check that the connection is on"):
                    await queue.options(connection=connection).enqueue(add, 1, 2)
        finally:
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute("DROP DATABASE elsewhere WITH (FORCE)")

    async def test_durability_is_raised(self, backend: PostgresBackend, server: str) -> None:
        """The caller's transaction waits for the disk, since the id that is returned promises it."""
        async with TaskQueue(backend) as queue:
            with psycopg.connect(server) as connection:
                connection.execute("SET synchronous_commit = off")
                await queue.options(connection=connection).enqueue(add, 1, 2)
                assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
