"""The PostgreSQL store: tasks in the tables of a schema, for any number of machines."""

try:
    import asyncpg  # noqa: F401
except ImportError as error:
    raise ImportError("the PostgreSQL store needs asyncpg: pip install 'sitq-queue[postgres]'") from error

from sitq.backends.postgres._backend import PostgresBackend
from sitq.backends.postgres._schema import Migration

__all__ = ["Migration", "PostgresBackend"]
