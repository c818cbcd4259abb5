"""Enqueue inside a transaction of the caller: on a connection that is not ours, so everything about it is checked."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sitq.backends.sqlite._accept import accept
from sitq.backends.sqlite._errors import explain, is_busy
from sitq.backends.sqlite._rows import NewRow
from sitq.backends.sqlite._store import Settings
from sitq.core import Accepted
from sitq.exceptions import BackendError, ValidationError

__all__ = ["accept_in"]


def accept_in(connection: Any, rows: Sequence[NewRow], now: float, settings: Settings) -> list[Accepted]:
    """Insert rows in the caller's transaction. Called in the thread the connection belongs to."""
    if not isinstance(connection, sqlite3.Connection):
        raise ValidationError(f"pass a sqlite3.Connection on the file of the queue, not {type(connection).__name__}")
    row_factory, connection.row_factory = connection.row_factory, None
    try:
        _check(connection, settings)
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # one process checkpoints at a time, and knows of it
        return accept(connection, rows, now)
    except sqlite3.Error as error:
        if is_busy(error):
            raise BackendError(
                f"{settings.path}: another connection is writing: begin your transaction with BEGIN IMMEDIATE, and "
                "connect with a timeout"
            ) from error
        raise explain(error, settings.path) from error
    finally:
        connection.row_factory = row_factory


def _check(connection: sqlite3.Connection, settings: Settings) -> None:
    files = {name: file for _, name, file in connection.execute("PRAGMA database_list")}
    if not files["main"] or not Path(files["main"]).samefile(settings.path):
        raise ValidationError(f"this connection is on {files['main'] or 'no file'}: connect it to {settings.path}")
    autocommits = connection.isolation_level is None or getattr(connection, "autocommit", None) is True
    if autocommits and not connection.in_transaction:
        raise ValidationError("this connection is in autocommit mode: execute BEGIN IMMEDIATE on it before you enqueue")
    wanted = 1 if settings.durability == "relaxed" else 2
    if connection.execute("PRAGMA synchronous").fetchone()[0] < wanted:
        word = "NORMAL" if wanted == 1 else "FULL"
        raise ValidationError(
            f'the queue promises durability "{settings.durability}": execute PRAGMA synchronous = {word} on this '
            "connection before your transaction"
        )
