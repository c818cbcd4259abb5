"""What a live file really gives: durability, known bugs of this SQLite, the disk below, and who may read it."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from sitq.backends.sqlite import _schema
from sitq.backends.sqlite._clock import boot_id, survives_steps
from sitq.backends.sqlite._hints import kernel_wakes
from sitq.backends.sqlite._open import mount_of
from sitq.backends.sqlite._store import Settings
from sitq.core import Finding, Verdict

__all__ = ["can_lose_commits", "diagnose"]

_KEEPS = {
    "relaxed": "a power cut may lose the last moments; a killed process loses nothing",
    "full": "a task is on disk before its id is returned; a power cut may undo a settle, and the task runs again",
    "strict": "tasks and what became of them are on disk before anybody is told",
}
_LARGE_LOG = 256 * 2**20
_LITTLE_SPACE = 2**30
_VOLATILE = frozenset({"tmpfs", "ramfs"})
_FIXED = {(3, 50): 7, (3, 44): 6}
"""Branches of SQLite, and the patch that mended the WAL-reset bug there (https://sqlite.org/wal.html#walresetbug)."""


def can_lose_commits(version: tuple[int, int, int]) -> bool:
    """Say whether this SQLite has the WAL-reset bug of 3.7.0 to 3.51.2.

    Two connections that write and checkpoint at the same moment could lose commits.
    """
    if version < (3, 7, 0) or version >= (3, 51, 3):
        return False
    fixed = _FIXED.get(version[:2])
    return fixed is None or version[2] < fixed


def diagnose(connection: sqlite3.Connection, settings: Settings) -> list[Finding]:
    """Look at an open store."""
    in_memory = settings.path == ":memory:"
    found = [_durability(connection, settings), _version(), _schema_version(connection)]
    if not in_memory:
        found += [*_sizes(settings.path), *_place(settings.path), _permissions(settings.path), _wake_up()]
    found.append(_boot(connection))
    found.append(_lease_clock())
    store = "the memory of this process" if in_memory else settings.path
    return [Finding(name="store", value=store), *found]


def _durability(connection: sqlite3.Connection, settings: Settings) -> Finding:
    if settings.path == ":memory:":
        advice = "use a file for work that must survive"
        return Finding(name="durability", value="none: tasks end with the process", verdict=Verdict.WARN, advice=advice)
    journal = connection.execute("PRAGMA journal_mode").fetchone()[0]
    level = settings.durability
    if journal != "wal":
        return Finding(
            name="durability",
            value=f"unknown: the journal is {journal!r}, not a write-ahead log",
            verdict=Verdict.BAD,
            advice="something else changed it: stop it, and restart the workers",
        )
    return Finding(
        name="durability",
        value=f"{level}: {_KEEPS[level]}",
        verdict=Verdict.WARN if level == "relaxed" else Verdict.OK,
        advice='each process chooses its own: durability="full"' if level == "relaxed" else "",
    )


def _version() -> Finding:
    affected = can_lose_commits(sqlite3.sqlite_version_info)
    return Finding(
        name="SQLite",
        value=sqlite3.sqlite_version
        + (
            " has the WAL-reset bug; sitq lets one connection at a time checkpoint, which avoids it" if affected else ""
        ),
        verdict=Verdict.WARN if affected else Verdict.OK,
        advice="let no other program checkpoint this file; 3.51.3, 3.50.7 and 3.44.6 have the fix" if affected else "",
    )


def _schema_version(connection: sqlite3.Connection) -> Finding:
    version = _schema.version_of(connection) or 0
    return Finding(name="schema", value=f"version {version}", number=version)


def _sizes(path: str) -> Iterator[Finding]:
    yield Finding(name="file size", value=_size(_bytes(path)), number=_bytes(path))
    log = _bytes(f"{path}-wal")
    large = log > _LARGE_LOG
    yield Finding(
        name="log size",
        value=_size(log),
        verdict=Verdict.WARN if large else Verdict.OK,
        advice="a connection that reads for long keeps it from being emptied: find and end it" if large else "",
        number=log,
    )
    free = os.statvfs(path)
    space = free.f_bavail * free.f_frsize
    yield Finding(
        name="free space",
        value=_size(space),
        verdict=Verdict.WARN if space < _LITTLE_SPACE else Verdict.OK,
        advice="make room: without space no task can be stored or settled" if space < _LITTLE_SPACE else "",
        number=space,
    )


def _bytes(path: str) -> int:
    try:
        return Path(path).stat().st_size  # never opened: closing it would drop the locks of this process
    except OSError:
        return 0


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def _place(path: str) -> Iterator[Finding]:
    kind, _ = mount_of(str(Path(path).parent))
    if kind:
        volatile = kind in _VOLATILE
        yield Finding(
            name="file system",
            value=f"{kind}: in memory, gone with the next boot" if volatile else kind,
            verdict=Verdict.WARN if volatile else Verdict.OK,
            advice="move the file to a disk" if volatile else "",
        )


def _permissions(path: str) -> Finding:
    mode = stat.S_IMODE(Path(path).stat().st_mode)
    words = stat.filemode(mode)[1:]
    if mode & stat.S_IWOTH:
        verdict, advice = Verdict.BAD, f"whoever writes to it can run code in the workers: chmod 600 {path}"
    elif mode & (stat.S_IROTH | stat.S_IWGRP):
        verdict, advice = Verdict.WARN, f"others than its owner can read or write the tasks: chmod 600 {path}"
    else:
        verdict, advice = Verdict.OK, ""
    return Finding(name="permissions", value=f"{words} ({mode:04o})", verdict=verdict, advice=advice)


def _wake_up() -> Finding:
    if kernel_wakes():
        return Finding(name="wake-up", value="by the kernel (inotify)")
    return Finding(
        name="wake-up",
        value="by looking, every 5 to 50 ms",
        verdict=Verdict.WARN,
        advice="on Linux: pip install asyncinotify",
    )


def _boot(connection: sqlite3.Connection) -> Finding:
    meta = dict(connection.execute("SELECT key, value FROM sitq_meta").fetchall())
    same = meta.get("boot") == boot_id()
    return Finding(
        name="boot",
        value=f"epoch {meta.get('epoch')}, {'this boot' if same else 'another boot than this one'}",
        verdict=Verdict.OK if same else Verdict.BAD,
        advice="" if same else "two hosts or containers share the file, and cannot judge each other's leases",
        number=float(meta.get("epoch") or 0),
    )


def _lease_clock() -> Finding:
    if survives_steps():
        return Finding(name="clock", value="leases use the time since boot, which no step of the clock moves")
    return Finding(
        name="clock",
        value="leases use wall time here",
        verdict=Verdict.WARN,
        advice="a step of the clock ends leases, or prolongs them: slew it (NTP)",
    )
