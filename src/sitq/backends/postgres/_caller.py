"""Enqueue inside a transaction of the caller: on connections of asyncpg, psycopg, SQLAlchemy and Django.

None of these is imported here: what the connection is shows by where its class comes from. Where a driver blocks, its
statements run in place, as the caller's own do.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sitq.backends.postgres._accept import Write, accept
from sitq.backends.postgres._connect import Clock, Settings, render
from sitq.backends.postgres._rows import NewRow
from sitq.core import Accepted
from sitq.exceptions import BackendError, SitqError, ValidationError

__all__ = ["accept_in"]

_OPEN_ONE = "open a transaction on this connection before you enqueue"


async def accept_in(connection: Any, rows: Sequence[NewRow], clock: Clock, settings: Settings) -> list[Accepted]:
    """Insert rows in the caller's transaction, which gets the durability of the store."""
    execute = await _execute_on(connection)
    level = "keep" if settings.durability == "relaxed" else "on"

    async def write(sql: str, *values: Any) -> list[Any]:
        return await execute(render(sql, settings.schema), clock.offset, level, *values)

    try:
        return await accept(write, rows)
    except SitqError:
        raise
    except Exception as error:
        raise BackendError(
            f"{type(error).__name__} inside your transaction, which cannot be committed now: {error}. Check that the "
            f"connection is on {settings.name}, and that its role may write there"
        ) from error


async def _execute_on(connection: Any) -> Write:
    """Return what runs a statement on a connection of whichever kind."""
    kinds = {base.__module__.partition(".")[0] for base in type(connection).__mro__}
    if "sqlalchemy" in kinds:
        return await _sqlalchemy(connection)
    if "django" in kinds:
        return await _django(connection)
    if "asyncpg" in kinds and hasattr(connection, "is_in_transaction"):
        return _asyncpg(connection)
    if kinds & {"psycopg", "psycopg2"} and hasattr(connection, "cursor"):
        return _dbapi(connection)
    raise ValidationError(
        "pass a connection of asyncpg or psycopg, a Session or Connection of SQLAlchemy, or Django's connection, not "
        f"{type(connection).__module__}.{type(connection).__qualname__}"
    )


def _asyncpg(connection: Any) -> Write:
    if not connection.is_in_transaction():
        raise ValidationError(f"{_OPEN_ONE}: `async with connection.transaction():`")

    async def execute(sql: str, *values: Any) -> list[Any]:
        return list(await connection.fetch(sql, *values))

    return execute


def _dbapi(connection: Any) -> Write:
    """Execute on a connection of psycopg 3, sync or async, or of psycopg2."""
    if connection.autocommit and connection.info.transaction_status == 0:  # idle
        raise ValidationError(f"{_OPEN_ONE}: it is in autocommit mode")
    options = {}
    if not type(connection).__module__.startswith("psycopg2"):
        from psycopg.rows import tuple_row

        options["row_factory"] = tuple_row

    async def execute(sql: str, *values: Any) -> list[Any]:
        cursor = connection.cursor(**options)
        try:
            await _if_needed(cursor.execute(_pyformat(sql), _named(values)))
            return list(await _if_needed(cursor.fetchall()))
        finally:
            await _if_needed(cursor.close())

    return execute


async def _sqlalchemy(connection: Any) -> Write:
    """Execute on a Session, AsyncSession, Connection or AsyncConnection, by the driver below it."""
    if not hasattr(connection, "exec_driver_sql"):
        if not callable(getattr(connection, "connection", None)):
            raise ValidationError(
                f"pass a Session or a Connection of SQLAlchemy, not {type(connection).__qualname__}: an engine has no "
                "transaction"
            )
        connection = await _if_needed(connection.connection())
    dialect = connection.dialect
    if dialect.name != "postgresql":
        raise ValidationError(f"this connection is to {dialect.name}: pass one to the PostgreSQL database of the queue")
    numbered = dialect.paramstyle == "numeric_dollar"

    async def execute(sql: str, *values: Any) -> list[Any]:
        statement, parameters = (sql, values) if numbered else (_pyformat(sql), _named(values))
        result = await _if_needed(connection.exec_driver_sql(statement, parameters))
        return list(result.fetchall())

    return execute


async def _django(connection: Any) -> Write:
    if connection.vendor != "postgresql":
        raise ValidationError(f"this connection is to {connection.vendor}: pass one to PostgreSQL, as connections['…']")
    if not connection.in_atomic_block:
        raise ValidationError(f"{_OPEN_ONE}: `with transaction.atomic():`")
    return await _execute_on(connection.connection)  # the driver's: Django's own refuses to be used beside a loop


async def _if_needed(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


@lru_cache(maxsize=64)
def _pyformat(sql: str) -> str:
    """Return a statement with named parameters: `$1` is `%(p1)s`."""
    return re.sub(r"\$(\d+)", r"%(p\1)s", sql.replace("%", "%%"))


def _named(values: Sequence[Any]) -> dict[str, Any]:
    return {f"p{number}": value for number, value in enumerate(values, start=1)}
