"""What SQLite's errors mean, and what to do about them."""

from __future__ import annotations

import sqlite3

from sitq.exceptions import BackendError

__all__ = ["explain", "is_about_data", "is_busy"]

_ADVICE = {
    "SQLITE_BUSY": "another connection held the write lock for too long: end its transaction, or raise busy_timeout",
    "SQLITE_LOCKED": "another connection of this process holds a lock on it: end its transaction",
    "SQLITE_FULL": "there is no space left: free some, then try again",
    "SQLITE_READONLY": "it cannot be written: check the permissions of the file and of its folder",
    "SQLITE_CANTOPEN": "it cannot be opened: check that its folder exists and can be written",
    "SQLITE_PERM": "it cannot be opened: check the permissions of the file and of its folder",
    "SQLITE_CORRUPT": 'it is damaged: restore a backup, or save what can be read with the sqlite3 shell\'s ".recover"',
    "SQLITE_NOTADB": "it is not a SQLite database: choose another path",
    "SQLITE_IOERR": "the disk failed to read or write: check the disk and the system's log",
    "SQLITE_TOOBIG": "a value is over SQLite's limit of 1 GB: pass an id or a path instead",
    "SQLITE_NOMEM": "there is no memory left for it",
}

_ABOUT_DATA = (
    sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError, OverflowError,
    TypeError, ValueError, AttributeError, LookupError,
)  # fmt: skip


def _name(error: BaseException) -> str:
    """Return SQLite's name of the error without its extension: `SQLITE_IOERR_FSYNC` is a `SQLITE_IOERR`."""
    return "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])


def is_busy(error: sqlite3.Error) -> bool:
    """Say whether a lock of another connection is in the way, which passes."""
    return _name(error) == "SQLITE_BUSY"


def is_about_data(error: Exception) -> bool:
    """Say whether the values of one operation are at fault, and not the store."""
    return isinstance(error, _ABOUT_DATA)


def explain(error: Exception, path: str) -> BackendError:
    """Return the `BackendError` for an error of SQLite, its cause attached."""
    if isinstance(error, BackendError):
        explained = BackendError(str(error))
    elif is_about_data(error):
        explained = BackendError(f"{path} cannot store this: {error}")
    else:
        advice = _ADVICE.get(_name(error), "SQLite says")
        explained = BackendError(f"{path}: {advice} ({error})")
    explained.__cause__ = error
    return explained
