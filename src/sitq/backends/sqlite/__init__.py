"""The SQLite store: tasks in one file, for all processes of one machine."""

from sitq.backends.sqlite._backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
