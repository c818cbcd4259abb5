"""A file that cannot be used is refused before anything is written, with a message that says what to do."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from sitq.backends.sqlite import SQLiteBackend, _open, _schema
from sitq.exceptions import BackendError, SchemaError, ValidationError
from sqlite.store_kit import WORKER, new, run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


async def refused(path: Path, kind: type[BackendError], words: str) -> None:
    """Check that opening `path` fails with `words` and leaves its folder as it was."""
    before = contents(path.parent) if path.parent.is_dir() else {}
    backend = SQLiteBackend(path)
    for _ in range(2):  # again without harm
        with pytest.raises(kind, match=words):
            await backend.connect()
    await backend.close()
    assert (contents(path.parent) if path.parent.is_dir() else {}) == before


async def test_a_missing_folder(tmp_path: Path) -> None:
    await refused(tmp_path / "none" / "tasks.db", BackendError, "does not exist: create it")


async def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "tasks.db").mkdir()
    await refused(tmp_path / "tasks.db", BackendError, "is a folder: name a file in it")


async def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "tasks.db").write_text("dear diary " * 100)
    await refused(tmp_path / "tasks.db", BackendError, "is not a SQLite database: choose another path")


async def test_the_database_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoices (id)")
    connection.close()
    await refused(path, SchemaError, "adopt=True")


async def test_a_database_may_be_shared_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE invoices (id)")
    async with SQLiteBackend(path, adopt=True) as backend:
        await backend.enqueue_tasks([new("a")])
        assert connection.execute("PRAGMA application_id").fetchone() == (0,)  # it stays the application's
    connection.close()
    async with SQLiteBackend(path) as backend:  # from now on it is a file of the queue as well
        assert [task.id for task in await backend.reserve(WORKER, 9)] == ["a"]


async def test_a_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    async with SQLiteBackend(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sitq_meta SET value = ? WHERE key = 'version'", (_schema.VERSION + 1,))
    connection.close()
    await refused(path, SchemaError, "newer sitq .* upgrade sitq here")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_folder_that_cannot_be_written() -> None:
    program = """
import asyncio, os, sys
from sitq.backends.sqlite import SQLiteBackend
from sitq.exceptions import BackendError
if os.getuid() == 0:
    os.setuid(65534)
try:
    asyncio.run(SQLiteBackend(sys.argv[1]).connect())
except BackendError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:  # `tmp_path` lies in a folder of the user that runs the tests
        Path(folder).chmod(0o555)
        assert "cannot be written" in run(program, Path(folder, "tasks.db"))
        assert os.listdir(folder) == []  # noqa: PTH208


MOUNTS = """\
22 1 0:21 / / rw - ext4 /dev/vda rw
30 22 0:40 / /srv/with\\040space rw,relatime shared:1 - nfs4 host:/export rw,vers=4.2
31 22 0:41 / /srv/with\\040space/local rw - xfs /dev/vdb rw
32 22 0:42 / /mnt/c rw - 9p drvfs rw,aname=drvfs;path=C:
33 22 0:43 / /mnt/sandbox rw - 9p none rw,trans=fd
34 22 0:44 / /media/me/remote rw - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/with space/queue", "nfs4"),
        ("/srv/with space", "nfs4"),
        ("/srv/with spaces", None),
        ("/srv/with space/local", None),
        ("/mnt/c/work", "9p"),
        ("/mnt/sandbox/work", None),
        ("/media/me/remote/x", "fuse.sshfs"),
        ("/media/me", None),
    ],
)
def test_network_file_systems_are_known_by_their_mount(tmp_path: Path, folder: str, kind: str | None) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert _open._network_kind(folder, str(mounts)) == kind


async def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_open, "_network_kind", lambda folder: "nfs4")
    await refused(tmp_path / "tasks.db", BackendError, r"network file system \(nfs4\).*use a local disk")


async def test_an_old_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    await refused(tmp_path / "tasks.db", BackendError, "too old: sitq needs 3.35")


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.mark.parametrize(("url", "mode"), [("", 0o600), ("?file_mode=664", 0o664)])
async def test_only_the_owner_may_read_a_new_file(tmp_path: Path, url: str, mode: int) -> None:
    async with SQLiteBackend.from_url(f"sqlite:///{tmp_path}/tasks.db{url}") as backend:
        await backend.enqueue_tasks([new()])
        modes = modes_in(tmp_path)
    assert {modes["tasks.db"], modes["tasks.db-wal"], modes["tasks.db-shm"]} == {mode}
    assert all(found & ~mode == 0 for found in modes.values())


@pytest.mark.parametrize("word", ["off", "", "FULL"])
def test_a_wrong_word_for_durability(word: str) -> None:
    with pytest.raises(ValidationError, match="relaxed, full, strict"):
        SQLiteBackend("tasks.db", durability=word)


def test_a_constructor_opens_nothing(tmp_path: Path) -> None:
    SQLiteBackend(tmp_path / "tasks.db")
    assert list(tmp_path.iterdir()) == []


async def test_first_use_opens_and_close_can_be_repeated(tmp_path: Path) -> None:
    backend = SQLiteBackend(str(tmp_path / "tasks.db"))
    await backend.close()
    assert await backend.get_task("nobody") is None
    await backend.close()
    await backend.close()


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:///tasks.db", "tasks.db"), ("sqlite:////var/lib/a%20b.db", "/var/lib/a b.db")],
)
def test_urls(url: str, path: str) -> None:
    assert SQLiteBackend.from_url(url)._settings.path == os.path.realpath(path)


def test_options_in_a_url() -> None:
    backend = SQLiteBackend.from_url("sqlite:///t.db?durability=strict&file_mode=640&busy_timeout=1.5&adopt=true")
    settings = backend._settings
    assert (settings.durability, settings.file_mode, settings.busy_timeout) == ("strict", 0o640, 1.5)
    assert settings.adopt


async def test_memory_by_url() -> None:
    async with SQLiteBackend.from_url("sqlite:///:memory:") as one, SQLiteBackend(":memory:") as other:
        await one.enqueue_tasks([new("mine")])
        assert await other.get_task("mine") is None  # each its own
        async with one.clone() as clone:
            assert await clone.get_task("mine") is not None


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://tasks.db", "sqlite://", "sqlite:///", "postgres:///x", "sqlite:///t.db?durability=maybe",
        "sqlite:///t.db?speed=high", "sqlite:///t.db?file_mode=9", "sqlite:///t.db?busy_timeout",
    ],
)  # fmt: skip
def test_wrong_urls(url: str) -> None:
    with pytest.raises(ValidationError):
        SQLiteBackend.from_url(url)


async def test_opening_waits_for_who_has_the_file_to_himself(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        backend = SQLiteBackend(path)
        opening = asyncio.create_task(backend.connect())
        done, _ = await asyncio.wait([opening], timeout=0.5)
        assert not done
        other.execute("COMMIT")
        await opening
        await backend.close()
        other.execute("BEGIN EXCLUSIVE")
        impatient = SQLiteBackend(path, busy_timeout=0.05)
        with pytest.raises(BackendError, match="write lock"):
            await impatient.connect()


def test_many_processes_may_make_the_file_at_once(tmp_path: Path) -> None:
    program = """
import asyncio, multiprocessing, sys
from sitq.backends.sqlite import SQLiteBackend
from sqlite.store_kit import new

async def go(path, number):
    async with SQLiteBackend(path) as backend:
        await backend.enqueue_tasks([new(f"t{number}")])

def main(path, number, barrier):
    for round in range(2):
        barrier.wait()
        asyncio.run(go(f"{path}-{round}", number))

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(8, timeout=30)
    children = [fork.Process(target=main, args=(sys.argv[1], n, barrier)) for n in range(8)]
    for child in children: child.start()
    for child in children: child.join()
    print(*[child.exitcode for child in children])
"""
    assert run(program, tmp_path / "tasks.db") == "0 0 0 0 0 0 0 0"
    for number in range(2):
        with closing(sqlite3.connect(tmp_path / f"tasks.db-{number}")) as connection:
            assert connection.execute("SELECT count(*) FROM sitq_tasks").fetchone() == (8,)
