"""What a live server really gives: durability, schema, sizes, and what holds its tables back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sitq.backends.postgres import _schema
from sitq.backends.postgres._connect import Settings, Tx, render
from sitq.core import Finding, Verdict

__all__ = ["diagnose"]

_KEEPS = {
    "relaxed": "a crash of the server may lose the last moments",
    "full": "a task is on disk before its id is returned; a crash may undo a settle, and the task runs again",
    "strict": "tasks and what became of them are on disk before anybody is told",
}
_SETTINGS = """
SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
    current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
    current_setting('synchronous_standby_names') AS standbys, pg_is_in_recovery() AS is_standby,
    current_setting('max_connections')::int AS most, (SELECT count(*)::int FROM pg_stat_activity) AS connections
"""
_TABLE = """
SELECT pg_total_relation_size(c.oid) AS size, s.n_dead_tup AS dead, s.n_live_tup AS live, s.last_autovacuum AS vacuumed
FROM pg_class AS c LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid WHERE c.oid = to_regclass($1)
"""
_OLDEST = """
SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_LONG = 300.0  # seconds
_OLDEST_VERSION = 140000


async def diagnose(tx: Tx) -> list[Finding]:
    """Look at an open store."""
    (live,) = await tx.plain(_SETTINGS)
    (table,) = await tx.plain(_TABLE, render("{s}.sitq_tasks", tx.settings.schema))
    ((oldest,),) = await tx.plain(_OLDEST)
    version = await _schema.version_of(tx.connection, tx.settings)
    return [
        Finding(name="store", value=tx.settings.name),
        _durability(live, tx.settings),
        _version(live),
        Finding(name="schema", value=f"version {version}", number=version),
        *_table(table),
        _transaction(oldest),
        _connections(live),
        _wake_up(tx.settings),
    ]


def _durability(live: Any, settings: Settings) -> Finding:
    if live["fsync"] != "on":
        return Finding(
            name="durability", value="none: the server runs with fsync = off", verdict=Verdict.BAD,
            advice="a crash of the machine may lose all of it: set fsync = on",
        )  # fmt: skip
    level = settings.durability
    standby = f"; standbys that confirm: {live['standbys']}" if live["standbys"] else ""
    return Finding(
        name="durability",
        value=f"{level}: {_KEEPS[level]}{standby}",
        verdict=Verdict.WARN if level == "relaxed" else Verdict.OK,
        advice='each process chooses its own: durability="full"' if level == "relaxed" else "",
    )


def _version(live: Any) -> Finding:
    old = live["number"] < _OLDEST_VERSION
    return Finding(
        name="PostgreSQL",
        value=live["version"],
        verdict=Verdict.BAD if old or live["is_standby"] else Verdict.OK,
        advice="this is a standby: connect to the primary"
        if live["is_standby"]
        else ("sitq needs 14 or newer" if old else ""),
    )


def _table(table: Any) -> Iterator[Finding]:
    size, dead, live = table["size"], table["dead"] or 0, table["live"] or 0
    yield Finding(name="file size", value=_size(size), number=size)
    bloated = dead > 100_000 and dead > 2 * live
    yield Finding(
        name="dead rows",
        value=f"{dead:,} beside {live:,}",
        verdict=Verdict.WARN if bloated else Verdict.OK,
        advice="autovacuum does not keep up: look for old transactions, or let it run faster" if bloated else "",
        number=dead,
    )


def _transaction(oldest: float | None) -> Finding:
    long = oldest is not None and oldest > _LONG
    return Finding(
        name="oldest transaction",
        value="none" if oldest is None else f"{oldest:.0f} s",
        verdict=Verdict.WARN if long else Verdict.OK,
        advice="it keeps dead rows in the tables, and reserving slows down: end it" if long else "",
        number=oldest,
    )


def _connections(live: Any) -> Finding:
    crowded = live["connections"] > 0.9 * live["most"]
    return Finding(
        name="connections",
        value=f"{live['connections']} of {live['most']}",
        verdict=Verdict.WARN if crowded else Verdict.OK,
        advice="few are left: lower pool_size, or put pgbouncer in between" if crowded else "",
        number=live["connections"],
    )


def _wake_up(settings: Settings) -> Finding:
    return Finding(name="wake-up", value="by LISTEN" if settings.listen else "by looking, every second")


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
