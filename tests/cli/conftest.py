import asyncio
from pathlib import Path

import pytest

from cli_kit import Cli, fill
from sitq import SQLiteBackend
from sitq.core import WorkerInfo


@pytest.fixture
def ids(tmp_path: Path) -> dict[str, str]:
    """The tasks of a store that has some in every phase."""
    return asyncio.run(fill(tmp_path / "tasks.db"))


@pytest.fixture
def cli(ids: dict[str, str], tmp_path: Path) -> Cli:
    """The command line on that store."""
    return Cli(f"sqlite:///{tmp_path / 'tasks.db'}")


@pytest.fixture
def mail_worker(ids: dict[str, str], tmp_path: Path) -> None:
    """Let the store know a live worker of the queue "mail" that holds nothing."""

    async def say_hello() -> None:
        async with SQLiteBackend(tmp_path / "tasks.db") as store:
            await store.extend_leases(WorkerInfo(id="box-9-beef", queues=("mail",)), [])

    asyncio.run(say_hello())
