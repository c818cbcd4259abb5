"""Opening a file: everything that could be wrong with it is found before anything is written."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from sitq.backends.sqlite import _schema
from sitq.backends.sqlite._clock import boot_id
from sitq.backends.sqlite._errors import explain, is_busy
from sitq.exceptions import BackendError, SchemaError

__all__ = ["check_existing", "connect", "mount_of", "open_database", "prepare", "retry_busy"]

T = TypeVar("T")

_MOUNTS = "/proc/self/mountinfo"
_OLDEST = (3, 35, 0)  # RETURNING
# A write-ahead log needs shared memory, which does not reach across hosts. Of 9p only Windows drives are meant.
_NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|afs|ceph|lustre|gpfs|beegfs|glusterfs|ocfs2|gfs2|davfs|vboxsf|"
    r"fuse\.(sshfs|s3fs|rclone|glusterfs|ceph|davfs2?|gcsfuse|blobfuse2?|mfs|juicefs|lustre))$"
)


def retry_busy(action: Callable[[], T], timeout: float) -> T:
    """Repeat `action` while another connection is in the way, for `timeout` seconds in all.

    Jittered: SQLite's own waiting grows to 100 ms and lets whoever came last go first. A busy process leaves the file
    alone for moments only, so the pauses are short and grow slowly, to 2 ms: two workers on one file drain 1.4 to 1.6
    times what one does, and 1.2 to 1.4 times when the pauses begin at 0.5 ms and double with every third.
    """
    deadline = time.monotonic() + timeout
    pause = 0.00025
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= deadline:
                raise
        # SQLite tells nobody when the lock is free; the thread that sleeps is the store's own, not an event loop's.
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        pause = min(pause * 1.02, 0.002)


def connect(path: str, timeout: float) -> sqlite3.Connection:
    """Connect to a database that exists."""
    uri = path if path == ":memory:" else f"{Path(path).as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=timeout)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:  # no database, or locked by somebody
        connection.close()
        raise
    return connection


def open_database(path: str, mode: int, adopt: bool, timeout: float) -> sqlite3.Connection:
    """Check a file, make it if need be, and return a connection in WAL mode."""
    if sqlite3.sqlite_version_info < _OLDEST:
        raise BackendError(f"SQLite {sqlite3.sqlite_version} is too old: sitq needs 3.35 or newer")
    if path == ":memory:":
        return connect(path, timeout)
    _check_place(path)
    if not os.path.exists(path):  # noqa: PTH110 (never opened again but by SQLite: closing it would drop our locks)
        _create(path, mode)
    try:
        return retry_busy(lambda: _open_once(path, adopt), timeout)
    except sqlite3.Error as error:
        raise explain(error, path) from error


def _open_once(path: str, adopt: bool) -> sqlite3.Connection:
    connection = connect(path, 0.1)
    try:
        _check_content(connection, path, adopt)
        journal = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if journal != "wal":
            raise BackendError(f"{path}: no write-ahead log is possible here ({journal}): choose a local disk")  # noqa: TRY301
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA busy_timeout = 0")  # from here on `retry_busy` waits
    except BaseException:
        connection.close()
        raise
    return connection


def check_existing(path: str) -> None:
    """Raise `BackendError` if there is no file yet."""
    if path != ":memory:" and not os.path.exists(path):  # noqa: PTH110 (as above)
        raise BackendError(f"there is no {path}: check the path; a producer or a worker makes it")


def _check_place(path: str) -> None:
    folder = os.path.dirname(path)  # noqa: PTH120
    if not os.path.isdir(folder):  # noqa: PTH112
        raise BackendError(f"the folder {folder} does not exist: create it, or choose another path")
    if os.path.isdir(path):  # noqa: PTH112
        raise BackendError(f"{path} is a folder: name a file in it")
    kind = _network_kind(folder)
    if kind is not None:
        raise BackendError(
            f"{folder} is on a network file system ({kind}), where SQLite loses data: use a local disk, or a store "
            "that has a server"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BackendError(f"the folder {folder} cannot be written, and SQLite keeps files beside {path}: change one")
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):  # noqa: PTH110
        raise BackendError(f"{path} cannot be read and written by this user: change its permissions")


def _network_kind(folder: str, mountinfo: str = _MOUNTS) -> str | None:
    """Return the kind of the network file system a folder is on, if it is on one (and this is Linux)."""
    kind, options = mount_of(folder, mountinfo)
    if _NETWORK.match(kind) or (kind == "9p" and "aname=drvfs" in options):
        return kind
    return None


def mount_of(folder: str, mountinfo: str = _MOUNTS) -> tuple[str, str]:
    """Return the kind and the options of the file system a folder is on; empty where the system does not say."""
    try:
        lines = Path(mountinfo).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return "", ""
    best, kind, options = "", "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        inside = point in ("/", folder) or folder.startswith(point + "/")
        if inside and len(point) >= len(best):
            best, (kind, _, options) = point, after.split(maxsplit=2)
    return kind, options


def _create(path: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode)
    except FileExistsError:
        return  # another process was faster
    except OSError as error:
        raise BackendError(f"{path} cannot be created: {error.strerror}") from error
    os.fchmod(descriptor, mode)  # the umask may have narrowed what was asked for
    os.close(descriptor)


def _check_content(connection: sqlite3.Connection, path: str, adopt: bool) -> None:
    # Tables before the version: another process may commit the schema between the two reads, and its tables without
    # their version would look like somebody else's (one opening in eight by eight processes at once).
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    version = _schema.version_of(connection)
    if version is None:
        if tables and not adopt:
            raise SchemaError(
                f"{path} is a database of something else: choose another path, or pass adopt=True to keep the queue's "
                "tables (sitq_…) in it as well"
            )
    elif version > _schema.VERSION:
        raise _schema.too_new(path, version)


def prepare(connection: sqlite3.Connection, path: str, timeout: float) -> int:
    """Bring the schema up to date and note a new boot; return the epoch of the fences."""
    connection.execute("PRAGMA synchronous = FULL")  # a fence must not come back after a power cut
    retry_busy(lambda: connection.execute("BEGIN IMMEDIATE"), timeout)
    try:
        fresh = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        _schema.migrate(connection, path)
        if fresh:
            connection.execute(f"PRAGMA application_id = {_schema.APPLICATION_ID}")
        epoch = _enter_boot(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return epoch


def _enter_boot(connection: sqlite3.Connection) -> int:
    """Return the epoch. Under another boot it grows, and all leases end: their clock has started again."""
    with closing(connection.execute("SELECT key, value FROM sitq_meta")) as rows:
        meta = dict(rows)
    boot = boot_id()
    if meta["boot"] == boot:
        return int(meta["epoch"])
    epoch = int(meta["epoch"]) + 1
    connection.executemany("UPDATE sitq_meta SET value = ? WHERE key = ?", [(boot, "boot"), (epoch, "epoch")])
    connection.execute("UPDATE sitq_tasks SET lease_until = 0 WHERE status = 1")
    connection.execute("DELETE FROM sitq_workers")
    return epoch
