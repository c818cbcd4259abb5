"""The tables of a PostgreSQL store, and how an older schema becomes a current one.

One table holds a task from enqueue to purge. `seq` is the order of arrival; `status` is 0 queued, 1 running, 2
completed, 3 failed. Times are the server's. Every index beside the two keys is partial, so a row is only in those its
status needs. That makes every move a new entry in the keys (no update is HOT), and room kept in the pages
(`fillfactor`) is in the way: a settle costs the server 29 us with 80, 22 with 90, 15 with 100.

Fences are `epoch << 32 | n`. A crash of the server, or a failover, may lose what was reserved or settled in its last
moments, and a fence must not be handed out twice. So the epoch stands in an unlogged table, which is emptied exactly
then: whoever finds it empty enters a new epoch (`enter_epoch`), on disk before its first fence is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sitq.backends.postgres._connect import Settings, Tx, render, transaction
from sitq.exceptions import BackendError, SchemaError

__all__ = ["MIGRATIONS", "VERSION", "Migration", "check", "enter_epoch", "migrate", "version_of"]


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: the version it leads to, and its SQL."""

    version: int
    sql: str


_FIRST = """
CREATE TABLE {s}.sitq_meta (key text PRIMARY KEY, value text NOT NULL);
INSERT INTO {s}.sitq_meta VALUES ('version', '0'), ('oldest', '1'), ('epoch', '0');

CREATE UNLOGGED TABLE {s}.sitq_epoch (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL
);

CREATE TABLE {s}.sitq_tasks (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    fence bigint NOT NULL DEFAULT 0,
    due timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    lease_until timestamptz,
    reserved_at timestamptz,
    purge_at timestamptz,
    expires timestamptz,
    unique_until timestamptz,
    enqueued_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    retention double precision,
    attempt integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    solo_crashes integer NOT NULL DEFAULT 0,
    attempts integer,
    status smallint NOT NULL DEFAULT 0,
    priority smallint NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    queue text COLLATE "C" NOT NULL,
    name text NOT NULL,
    worker_id text,
    unique_key text COLLATE "C",
    options text,
    reason text,
    progress text,
    outcome text,
    error text,
    traceback text,
    payload bytea,
    result bytea
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX sitq_ready ON {s}.sitq_tasks (queue, priority, due, seq) WHERE status = 0;
CREATE INDEX sitq_leases ON {s}.sitq_tasks (lease_until, worker_id) WHERE status = 1;
CREATE INDEX sitq_ended ON {s}.sitq_tasks (purge_at) WHERE status >= 2;
CREATE INDEX sitq_expiring ON {s}.sitq_tasks (expires) WHERE status = 0 AND expires IS NOT NULL;
CREATE UNIQUE INDEX sitq_unique ON {s}.sitq_tasks (unique_key) WHERE unique_key IS NOT NULL;

CREATE TABLE {s}.sitq_queues (queue text COLLATE "C" PRIMARY KEY, paused boolean NOT NULL);
CREATE TABLE {s}.sitq_workers (
    id text PRIMARY KEY,
    queues text[],
    lease double precision NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL,
    seen timestamptz NOT NULL
) WITH (fillfactor = 50);
"""

# One round trip in two transactions. The tasks can be seen as soon as the first has committed, without waiting for
# the disk, and a worker starts. The second writes something to the log and waits until that is on disk: what is before
# it in the log then is, too. A procedure, because only there a statement can commit in its midst.
_ACCEPT = """
CREATE PROCEDURE {s}.sitq_accept(
    ahead double precision, channel text, ids text[], queues text[], priorities smallint[], created timestamptz[],
    etas timestamptz[], names text[], all_options text[], expiries timestamptz[], retentions double precision[],
    payloads bytea[], INOUT accepted text[]
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    WITH t AS MATERIALIZED (
        SELECT clock_timestamp() + make_interval(secs => ahead) AS now
    ), inserted AS (
        INSERT INTO {s}.sitq_tasks (id, queue, priority, due, created_at, name, options, expires, retention, payload)
        SELECT n.id, n.queue, n.priority, CASE WHEN n.eta > n.created_at THEN n.eta ELSE least(n.created_at, t.now) END,
            n.created_at, n.name, n.options, n.expires, n.retention, n.payload
        FROM t, unnest(
            ids, queues, priorities, created, etas, names, all_options, expiries, retentions, payloads
        ) AS n (id, queue, priority, created_at, eta, name, options, expires, retention, payload)
        ON CONFLICT DO NOTHING
        RETURNING id
    )
    SELECT array_agg(id) INTO accepted FROM inserted;
    IF channel IS NOT NULL THEN
        PERFORM pg_notify(channel, '');
    END IF;
    COMMIT;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM pg_logical_emit_message(true, 'sitq', '');
END $$;
"""

_RETRYING = """
CREATE INDEX sitq_retrying ON {s}.sitq_tasks (queue) WHERE status = 0 AND attempt > 0;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _ACCEPT, _RETRYING)
"""Each script leads from the version of its index to the next. They are never edited once released, only added to.

They only add, so that workers of the version before go on; one that cannot keep to that raises `oldest` in sitq_meta.
"""

VERSION = len(MIGRATIONS)

_SET_VERSION = "UPDATE {s}.sitq_meta SET value = '%d' WHERE key = 'version';\n"
# Not to_regclass: what that has not found it remembers to the end of the transaction, past the wait for another's.
_IS_THERE = """
SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = 'sitq_meta'
"""
_META = "SELECT key, value FROM {s}.sitq_meta WHERE key IN ('version', 'oldest')"


def scripts(schema: str, since: int = 0) -> list[Migration]:
    """Return the migrations that follow a version."""
    found = []
    for version, script in enumerate(MIGRATIONS[since:], start=since + 1):
        create = "CREATE SCHEMA IF NOT EXISTS {s};\n" if version == 1 else ""
        found.append(Migration(version, render(create + script.lstrip() + _SET_VERSION % version, schema)))
    return found


async def version_of(connection: Any, settings: Settings) -> int:
    """Return the version of the schema, 0 if it is not there. Raises `SchemaError` for one this sitq cannot use."""
    if await connection.fetchval(_IS_THERE, settings.schema) is None:
        return 0
    meta = dict(await connection.fetch(render(_META, settings.schema)))
    if int(meta["oldest"]) > VERSION:
        raise SchemaError(
            f"{settings.name} was migrated by a newer sitq (schema {meta['version']}, which needs at least "
            f"{meta['oldest']}; this one knows {VERSION}): upgrade sitq here"
        )
    return int(meta["version"])


async def check(connection: Any, settings: Settings, existing: bool = False) -> None:
    """See to it that the schema can be used: migrate it where that is allowed, else say what to do."""
    version = await version_of(connection, settings)
    if version >= VERSION:
        return
    if version == 0 and existing:
        raise BackendError(f"there is no queue in {settings.name}: check the URL; a producer or a worker makes it")
    if not settings.migrate:
        raise SchemaError(
            f"{settings.name} is at schema {version}, and this sitq needs {VERSION}: run `sitq migrate` as a role that "
            "owns the tables"
        )
    await migrate(connection, settings)


async def migrate(connection: Any, settings: Settings) -> list[Migration]:
    """Bring the schema to `VERSION`; return what was done. One process at a time does it."""
    async with transaction(connection, settings):
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('sitq migrate ' || $1::text))", settings.schema)
        todo = scripts(settings.schema, await version_of(connection, settings))
        for migration in todo:
            await connection.execute(migration.sql)
    return todo


_LOCK_EPOCH = "SELECT value FROM {s}.sitq_meta WHERE key = 'epoch' FOR UPDATE"
_EPOCH = "SELECT epoch FROM {s}.sitq_epoch"
# Seconds since 2020, so that a standby that missed the last epoch does not enter the same one again.
_NEXT_EPOCH = """
UPDATE {s}.sitq_meta SET value = greatest(value::bigint + 1, extract(epoch FROM clock_timestamp())::bigint - 1577836800)
WHERE key = 'epoch' RETURNING value::bigint
"""
_ENTER_EPOCH = "INSERT INTO {s}.sitq_epoch (epoch) VALUES ($1)"


async def enter_epoch(tx: Tx) -> int:
    """Return the epoch, entering a new one if the server has crashed since the last one was entered.

    Runs inside a transaction.
    """
    await tx.plain("SELECT set_config('synchronous_commit', 'on', true)")
    await tx.plain(_LOCK_EPOCH)
    found = await tx.plain(_EPOCH)
    if not found:
        found = await tx.plain(_NEXT_EPOCH)
        await tx.plain(_ENTER_EPOCH, found[0][0])
    return int(found[0][0])
