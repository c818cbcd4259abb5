"""What a power cut leaves of a file: what the disk was made to take, and no more."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from sitq.backends.sqlite import SQLiteBackend, _threads
from sitq.core import Status, WorkerInfo
from sitq.exceptions import BackendError
from sqlite.store_kit import PATIENCE, WORKER, completed, handed_in, inside, new, statements


class Disk:
    """Stands between the writer and the kernel: notes how much of the log is safe, and can fail or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.safe = 0
        self.syncs = 0
        self.is_broken = False
        self.asked, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self._sync = _threads._sync_file
        monkeypatch.setattr(_threads, "_sync_file", self)

    def __call__(self, descriptor: int) -> None:
        self.asked.set()
        assert self.gate.wait(PATIENCE)
        if self.is_broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(descriptor)
        self.safe, self.syncs = os.fstat(descriptor).st_size, self.syncs + 1

    def left_after_power_cut(self, path: Path, folder: Path) -> Path:
        """Return a copy of a store with nothing in its log that was not made safe."""
        folder.mkdir()
        copy = folder / path.name
        shutil.copy(path, copy)
        log = Path(f"{path}-wal").read_bytes()
        Path(f"{copy}-wal").write_bytes(log[: self.safe])
        return copy


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


async def _ids(path: Path) -> set[str]:
    async with SQLiteBackend(path) as backend:
        return {task.id for task in await backend.list_tasks(limit=1000)}


async def test_what_was_acknowledged_is_there_after_a_power_cut(path: Path, tmp_path: Path, disk: Disk) -> None:
    async with SQLiteBackend(path) as backend:
        for count in range(1, 6):
            many = await asyncio.gather(*(backend.enqueue_tasks([new(), new()]) for _ in range(10)))
            known = {task.id for task in await backend.list_tasks(limit=1000)}
            assert len(known) == len(many) * 2 * count
            copy = disk.left_after_power_cut(path, tmp_path / str(count))
            assert await _ids(copy) == known


async def test_the_check_notices_what_was_not_synced(path: Path, tmp_path: Path, disk: Disk) -> None:
    """The negative control: "relaxed" may lose the last moments, and here does."""
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("before")])
    disk.safe = 0  # it is in the database, and the log is gone
    async with SQLiteBackend(path, durability="relaxed") as backend:
        await backend.enqueue_tasks([new("after")])
        assert await _ids(disk.left_after_power_cut(path, tmp_path / "cut")) == {"before"}


@pytest.mark.parametrize(("durability", "accepting"), [("relaxed", 0), ("full", 1)])
async def test_syncs_by_durability(path: Path, disk: Disk, durability: str, accepting: int) -> None:
    async with SQLiteBackend(path, durability=durability) as backend:
        await backend.enqueue_tasks([new(), new()])
        assert disk.syncs == accepting
        reserved = await backend.reserve(WORKER, 2)
        assert await backend.settle([completed(task) for task in reserved]) == [True, True]
        assert disk.syncs == accepting
        await backend.enqueue_tasks([new(unique="key")])
        await backend.enqueue_tasks([new(unique="key")])  # the one that was there may be another process's last commit
        assert disk.syncs == accepting * 3


@pytest.mark.parametrize(("durability", "level"), [("relaxed", 1), ("full", 1), ("strict", 2)])
async def test_sqlite_itself_syncs_within_the_commit_when_strict(path: Path, durability: str, level: int) -> None:
    async with SQLiteBackend(path, durability=durability) as backend:
        await backend.enqueue_tasks([new()])
        assert await inside(backend, lambda tx: tx.connection.execute("PRAGMA synchronous").fetchone()[0]) == level


async def test_others_go_on_while_the_disk_takes_the_log(path: Path, disk: Disk) -> None:
    """A worker elsewhere may reserve and another producer write; the id is not returned before it is safe."""
    async with SQLiteBackend(path) as backend:
        await backend.connect()
        disk.gate.clear()
        enqueue = asyncio.create_task(backend.enqueue_tasks([new("one")]))
        assert await asyncio.to_thread(disk.asked.wait, PATIENCE)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert other.execute("SELECT id FROM sitq_tasks").fetchall() == [("one",)]
            other.execute("ROLLBACK")
        assert not enqueue.done()
        disk.gate.set()
        [accepted] = await enqueue
        assert accepted.id == "one"


async def test_a_disk_that_fails_acknowledges_nothing_until_the_log_is_written_anew(path: Path, disk: Disk) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("safe")])
        disk.is_broken = True
        with pytest.raises(BackendError, match=r"did not take the log.*check the disk") as caught:
            await backend.enqueue_tasks([new("unsure")])
        assert isinstance(caught.value.__cause__, OSError)
        disk.is_broken = False
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sitq_tasks").fetchone()  # a snapshot that needs the log as it is
            with pytest.raises(BackendError, match="while others read it"):
                await backend.enqueue_tasks([new("early")])
        again = await statements(backend, lambda: backend.enqueue_tasks([new("again")]))
        assert any("wal_checkpoint(RESTART)" in statement for statement in again)
        after = await statements(backend, lambda: backend.enqueue_tasks([new("after")]))
        assert not any("wal_checkpoint" in statement for statement in after)


async def test_what_a_worker_asked_beside_is_answered_although_the_disk_fails(path: Path, disk: Disk) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new("one")])
        [task] = await backend.reserve(WorkerInfo(id="worker", lease=30.0), 1)
        entered, gate = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            entered.set()
            gate.wait(PATIENCE)

        held = asyncio.create_task(inside(backend, hold))
        assert await asyncio.to_thread(entered.wait, PATIENCE)
        disk.is_broken = True
        both = asyncio.gather(
            backend.enqueue_tasks([new("two")]), backend.settle([completed(task)]), return_exceptions=True
        )
        await handed_in()  # both share the next batch
        gate.set()
        await held
        refused, settled = await both
        assert isinstance(refused, BackendError)
        assert settled == [True]
        found = await backend.get_task("one")
        assert found is not None
        assert found.status == Status.COMPLETED
