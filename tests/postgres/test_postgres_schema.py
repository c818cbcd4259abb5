"""The schema: made, migrated, refused; and what a role needs that may not make it."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from servers.postgres import KEYS
from sitq import BackendError, SchemaError, TaskQueue, ValidationError, Worker
from sitq.backends.base import Backend
from sitq.backends.postgres import PostgresBackend, _schema
from sitq.core import Task

Make = Callable[..., PostgresBackend]
Sql = Callable[..., list[Any]]


def add(a: int, b: int) -> int:
    return a + b


async def test_many_connect_at_once(make_backend: Make, sql: Sql) -> None:
    """One makes the tables, the others wait for it."""
    backends = [make_backend() for _ in range(6)]
    await asyncio.gather(*(backend.connect() for backend in backends))
    for backend in backends:
        await backend.close()
    assert sql("SELECT value FROM {s}.sitq_meta WHERE key = 'version'") == [(str(_schema.VERSION),)]


async def test_looking_makes_nothing(make_backend: Make, sql: Sql) -> None:
    with pytest.raises(BackendError, match="there is no queue"):
        await make_backend().connect_existing()
    assert sql("SELECT to_regclass('{s}.sitq_meta')") == [(None,)]


async def test_a_worker_that_may_not_migrate_says_so(make_backend: Make) -> None:
    with pytest.raises(SchemaError, match="sitq migrate"):
        await make_backend(migrate=False).connect()
    assert [step.version for step in await make_backend(migrate=False).migrate()] == [1, 2, 3]
    assert await make_backend().migrate() == []
    async with make_backend(migrate=False) as backend:
        assert await backend.count_tasks() == []


async def test_printed_sql_is_what_is_run(make_backend: Make, sql: Sql) -> None:
    """A schema made by hand from the printed SQL is a schema like any other."""
    for migration in make_backend().migrations():
        sql(migration.sql)
    async with make_backend(migrate=False) as backend, TaskQueue(backend) as queue:
        handle = await queue.enqueue(add, 1, 2)
        await Worker(queue).run_until_empty()
        assert await handle.result(30) == 3


async def test_the_next_version_adds(make_backend: Make, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of the version before goes on while and after the schema is migrated."""
    next_version = _schema.VERSION + 1
    async with make_backend() as old:
        await old.enqueue_task(Task(id="before"), add, (1, 2), {})
        with monkeypatch.context() as patch:
            more = "ALTER TABLE {s}.sitq_tasks ADD COLUMN colour text NOT NULL DEFAULT 'red';\n"
            patch.setattr(_schema, "MIGRATIONS", (*_schema.MIGRATIONS, more))
            patch.setattr(_schema, "VERSION", next_version)
            async with make_backend() as new:
                assert [step.version for step in new.migrations(since=next_version - 1)] == [next_version]
        await old.enqueue_task(Task(id="after"), add, (1, 2), {})
        assert {task.id for task in await old.reserve_task("w", 5)} == {"before", "after"}
    async with make_backend() as again:  # started with the version before
        assert len(await again.list_tasks()) == 2
    assert sql("SELECT DISTINCT colour FROM {s}.sitq_tasks") == [("red",)]


async def test_a_newer_schema_that_breaks_is_refused(make_backend: Make, sql: Sql) -> None:
    async with make_backend():
        sql("UPDATE {s}.sitq_meta SET value = '7'")
    with pytest.raises(SchemaError, match="upgrade sitq here"):
        await make_backend().connect()


async def test_a_migration_that_fails_changes_nothing(
    make_backend: Make, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_backend():
        pass
    broken = "CREATE TABLE {s}.sitq_half (a int); INSERT INTO {s}.sitq_nowhere VALUES (1);\n"
    monkeypatch.setattr(_schema, "MIGRATIONS", (*_schema.MIGRATIONS, broken))
    monkeypatch.setattr(_schema, "VERSION", _schema.VERSION + 1)
    with pytest.raises(BackendError, match="sitq_nowhere"):
        await make_backend().connect()
    assert sql("SELECT to_regclass('{s}.sitq_half')") == [(None,)]


async def test_least_privilege(make_backend: Make, sql: Sql, server: str) -> None:
    """The grants of the how-to are enough for queue, worker and operator, and do not let the role change the schema."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "postgresql.md").read_text(encoding="utf-8")
    grants = re.findall(r"^GRANT .*;$", page, re.MULTILINE)
    assert len(grants) == 3
    schema = make_backend()._settings.schema
    role = f"worker_of_{schema}"
    async with make_backend():
        sql(f"CREATE ROLE {role} LOGIN")
        sql("REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA {s} FROM PUBLIC")  # as where that is no default
        for grant in grants:
            sql(grant.replace("SCHEMA sitq", "SCHEMA {s}").replace("sitq_worker", role))
    url = re.sub("//([^/]*@)?", f"//{role}@", server, count=1)
    backend: Backend = PostgresBackend(url, schema=schema, signing_keys=KEYS)
    async with TaskQueue(backend) as queue:
        handle = await queue.options(unique="k").enqueue(add, 1, 2)
        another = await queue.enqueue(add, 3, 4)
        async with Worker(queue):
            assert await handle.result(30) == 3
            assert await another.result(30) == 7
        assert await backend.requeue_tasks([handle]) == [True]
        await queue.cancel(handle)
        await backend.pause_queue("default", paused=True)
        assert await backend.purge() == 0
        assert await backend.diagnose()
    with psycopg.connect(url) as connection, pytest.raises(psycopg.Error):
        connection.execute(f"ALTER TABLE {schema}.sitq_tasks ADD COLUMN mine int".encode())
    sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


class TestOptions:
    @pytest.mark.parametrize(
        "options", [{"schema": 'a"b'}, {"schema": ""}, {"durability": "none"}, {"pool_size": 0}], ids=str
    )
    def test_bad_ones_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            PostgresBackend("postgresql://localhost/db", **options)

    @pytest.mark.parametrize("dsn", ["mysql://localhost/db", "localhost", ""])
    def test_bad_addresses_are_refused(self, dsn: str) -> None:
        with pytest.raises(ValidationError, match="write postgresql://"):
            PostgresBackend(dsn)

    def test_from_url(self) -> None:
        url = "postgresql://u:p@h:1/db?sslmode=disable&schema=jobs&durability=strict&pool_size=2&listen=false"
        settings = PostgresBackend.from_url(f"{url}&statement_cache_size=0&retry_timeout=3")._settings
        assert settings.dsn == "postgresql://u:p@h:1/db?sslmode=disable"
        assert (settings.schema, settings.durability, settings.pool_size) == ("jobs", "strict", 2)
        assert (settings.listen, settings.is_pooled, settings.retry_timeout) == (False, True, 3.0)
        assert "p@" not in settings.name

    def test_from_url_refuses_what_it_cannot_read(self) -> None:
        with pytest.raises(ValidationError, match="pool_size=many"):
            PostgresBackend.from_url("postgresql://h/db?pool_size=many")

    def test_without_a_key_the_choices_are_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SITQ_SECRET_KEY", raising=False)
        with pytest.raises(ValidationError, match="SITQ_SECRET_KEY") as refused:
            TaskQueue("postgresql://localhost/db")
        assert "JsonSerializer" in str(refused.value)
        assert "CloudpickleSerializer" in str(refused.value)
