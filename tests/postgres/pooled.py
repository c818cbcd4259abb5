"""Through a real PgBouncer in transaction mode, without listening: `scripts/slow pgbouncer` runs this."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator

import asyncpg
import pytest

from postgres.ledger import FAULTS, Ledger
from servers.pgbouncer import PgBouncer
from servers.postgres import POOLED, PostgresServer, fresh_postgres
from sitq.backends.postgres import _connect


@pytest.fixture(scope="module")
def pooler(own_server: PostgresServer) -> Iterator[PgBouncer]:
    """Start a pooler that may be killed."""
    pooler = PgBouncer(own_server.url)
    yield pooler
    pooler.remove()


async def test_the_tests_meet_other_sessions_all_the_time() -> None:
    """The stores of a run with `SITQ_TEST_PGBOUNCER` are pooled, and no session is a client's own."""
    settings = fresh_postgres()()._settings
    assert settings.is_pooled
    assert not settings.listen
    clients = [await asyncpg.connect(settings.dsn, statement_cache_size=0) for _ in range(8)]
    sessions = {await client.fetchval("SELECT pg_backend_pid()") for client in clients for _ in range(4)}
    mine = {await clients[0].fetchval("SELECT pg_backend_pid()") for _ in range(20)}
    for client in clients:
        await client.close()
    assert len(sessions) <= 4 < len(clients), "as many sessions as clients"
    assert len(mine) > 1 or len(sessions) == 1


async def test_ledger(own_server: PostgresServer, pooler: PgBouncer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes of the server behind the pooler and of the pooler, broken connections to it: nothing lost, no stall."""

    async def kill_pooler(_ledger: Ledger) -> None:
        await asyncio.to_thread(pooler.stop)
        pooler.start()

    kinds: dict[str, Callable[[Ledger], Awaitable[None]]] = FAULTS
    monkeypatch.setitem(kinds, "kill the pooler", kill_pooler)
    monkeypatch.setattr(_connect, "_COMMAND_TIMEOUT", 1.0)
    monkeypatch.setattr(_connect, "_CONNECT_TIMEOUT", 1.0)
    ledger = Ledger(own_server, "strict", schema="ledger", port=pooler.port, options=POOLED)
    rounds = int(os.environ.get("SITQ_SERVER_CRASHES", "1"))
    await ledger.run(["crash", "cut", "kill the pooler", "deaf", "hang"] * rounds)
    print("through PgBouncer, itself killed as often:", ledger.account(rounds))  # noqa: T201 (scripts/slow shows it)
