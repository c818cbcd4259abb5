"""What PostgreSQL's errors mean, and what to do about them."""

from __future__ import annotations

import asyncpg

from sitq.exceptions import BackendError, SchemaError

__all__ = ["explain", "is_about_data", "is_lost", "is_passing", "lacks_epoch"]

_LOST = (
    OSError,  # TimeoutError, too
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,  # this one is a standby now: the next connection finds the primary
    asyncpg.IdleInTransactionSessionTimeoutError,
)
_CONFLICTS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_ABOUT_DATA = (
    asyncpg.DataError,
    asyncpg.exceptions.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
    TypeError,
    ValueError,
)


def is_lost(error: BaseException) -> bool:
    """Say whether the connection is of no more use, so that nobody knows what became of the statement."""
    if isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError):
        return True  # asyncpg's words for a connection that is closed, or busy with a query that was cancelled
    return isinstance(error, _LOST)


def is_passing(error: BaseException) -> bool:
    """Say whether the same again may succeed: the connection was lost, or two transactions were in each other's way."""
    return is_lost(error) or isinstance(error, _CONFLICTS)


def lacks_epoch(error: BaseException) -> bool:
    """Say whether a fence could not be made because the server has crashed since the last one (see `_schema`)."""
    return isinstance(error, asyncpg.NotNullViolationError) and error.column_name == "fence"


def is_about_data(error: Exception) -> bool:
    """Say whether the values of one operation are at fault, and not the store."""
    return isinstance(error, _ABOUT_DATA)


def explain(error: Exception, store: str) -> BackendError:
    """Return the `BackendError` for an error of the driver, its cause attached."""
    explained: BackendError
    if isinstance(error, (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError)):
        explained = SchemaError(f"{store} has no tables of sitq, or others than expected: run `sitq migrate` ({error})")
    elif isinstance(error, asyncpg.InsufficientPrivilegeError):
        explained = BackendError(f"{store}: the role lacks a privilege: grant it, see `sitq migrate --sql` ({error})")
    elif isinstance(error, (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
        explained = BackendError(f"{store} refuses the role or its password: check the URL ({error})")
    elif isinstance(error, asyncpg.InvalidCatalogNameError):
        explained = BackendError(f"{store}: there is no such database: check the URL, or create it ({error})")
    elif is_lost(error):
        what = str(error) or type(error).__name__
        explained = BackendError(f"{store} does not answer: check that it runs and can be reached ({what})")
    elif is_about_data(error):
        explained = BackendError(f"{store} cannot store this: {error}")
    else:
        explained = BackendError(f"{store}: PostgreSQL says: {error}")
    explained.__cause__ = error
    return explained
