"""`sitq doctor`: what a store says of itself, and what is said of any store."""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli_kit import WIDTHS, Cli
from sitq import MemoryBackend, SQLiteBackend
from sitq.backends.base import Backend, Capability
from sitq.backends.sqlite import _doctor
from sitq.backends.sqlite._doctor import can_lose_commits
from sitq.cli._doctor import general_findings
from sitq.core import Finding, QueueCounts, Verdict, WorkerInfo

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
FILE = [
    "store",
    "durability",
    "SQLite",
    "schema",
    "file size",
    "log size",
    "free space",
    "permissions",
    "boot",
    "clock",
]


async def findings(store: Backend) -> dict[str, Finding]:
    async with store:
        return {finding.name: finding for finding in await store.diagnose()}


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_command_prints_verdict_finding_and_advice(cli: Cli, tmp_path: Path, columns: int) -> None:
    out = cli("doctor", columns=columns, code=1).out
    assert out.splitlines()[0].split()[:2] == ["ok", "store"]
    flat = " ".join(out.split())
    for words in ("durability full: a task is on disk before", "capabilities all", "workers 1 alive", "bad queue mail"):
        assert words in flat
    assert "→ start one: sitq worker app:queue --queues mail" in flat


@pytest.mark.usefixtures("mail_worker")
def test_the_command_prints_json_and_fails_over_what_is_bad(cli: Cli) -> None:
    data = cli("doctor", "--json").data
    assert data["ok"]
    by_name = {finding["name"]: finding for finding in data["findings"]}
    assert set(FILE) < by_name.keys()
    assert by_name["file size"]["number"] > 0
    assert by_name["queue default"]["verdict"] == "warn"


@pytest.mark.parametrize("level", ["relaxed", "full", "strict"])
async def test_a_file_says_what_its_durability_keeps(tmp_path: Path, level: str) -> None:
    found = await findings(SQLiteBackend(tmp_path / "tasks.db", durability=level))
    assert set(FILE) <= found.keys()
    assert found["durability"].value.startswith(f"{level}: ")
    assert found["durability"].verdict == (Verdict.WARN if level == "relaxed" else Verdict.OK)
    assert found["schema"].value.startswith("version ")
    assert found["boot"].verdict == found["permissions"].verdict == Verdict.OK


async def test_a_journal_that_somebody_changed_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    async with SQLiteBackend(path):
        pass
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    settings = SQLiteBackend(path)._settings
    found = {one.name: one for one in _doctor.diagnose(connection, settings)}
    connection.close()
    assert found["durability"].verdict == Verdict.BAD


async def test_memory_says_that_it_keeps_nothing(tmp_path: Path) -> None:
    for store in (MemoryBackend(), SQLiteBackend(":memory:")):
        found = await findings(store)
        assert found["durability"].value.startswith("none")
        assert found["durability"].verdict == Verdict.WARN
        assert "file size" not in found


@pytest.mark.parametrize(
    ("mode", "verdict"),
    [
        (0o600, Verdict.OK),
        (0o640, Verdict.OK),
        (0o644, Verdict.WARN),
        (0o660, Verdict.WARN),
        (0o666, Verdict.BAD),
    ],
)
async def test_permissions_are_judged(tmp_path: Path, mode: int, verdict: Verdict) -> None:
    found = await findings(SQLiteBackend(tmp_path / "tasks.db", file_mode=mode))
    assert found["permissions"].verdict == verdict
    assert f"({mode:04o})" in found["permissions"].value


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False),
        ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 2), True),
        ((3, 51, 3), False), ((3, 52, 0), False),
    ],
)  # fmt: skip
def test_the_versions_that_can_lose_commits_are_known(version: tuple[int, int, int], affected: bool) -> None:
    assert can_lose_commits(version) == affected


Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    ("name", "patch", "words"),
    [
        ("SQLite", lambda m: m.setattr(sqlite3, "sqlite_version_info", (3, 40, 1)), "WAL-reset bug"),
        ("log size", lambda m: m.setattr(_doctor, "_LARGE_LOG", -1), "B"),
        ("free space", lambda m: m.setattr(_doctor, "_LITTLE_SPACE", 2**63), "iB"),
        ("file system", lambda m: m.setattr(_doctor, "mount_of", lambda _: ("tmpfs", "")), "gone with the next boot"),
        ("wake-up", lambda m: m.setattr(_doctor, "kernel_wakes", lambda: False), "by looking"),
        ("boot", lambda m: m.setattr(_doctor, "boot_id", lambda: "another"), "another boot"),
        ("clock", lambda m: m.setattr(_doctor, "survives_steps", lambda: False), "wall time"),
    ],
)
async def test_what_is_not_as_it_should_be_comes_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, patch: Patch, words: str
) -> None:
    patch(monkeypatch)
    finding = (await findings(SQLiteBackend(tmp_path / "tasks.db")))[name]
    assert finding.verdict != Verdict.OK
    assert words in finding.value
    assert finding.advice


async def test_another_store_at_least_says_which_it_is() -> None:
    assert [(one.name, one.value) for one in await Backend.diagnose(MemoryBackend())] == [("store", "MemoryBackend")]


# --- any store --------------------------------------------------------------------------------------------------------


def test_missing_capabilities_are_named() -> None:
    (found,) = general_findings(Capability.QUEUES | Capability.DEFER, None, None, NOW)
    assert found.value == "all but LEASES, ATOMIC, UNIQUE, CANCEL, INSPECT, PAUSE, TRANSACTION"
    assert found.verdict == Verdict.WARN


def test_workers_are_counted_and_their_clocks_compared() -> None:
    everything = ~Capability(0)
    none = general_findings(everything, [], [], NOW)
    assert [(one.value, one.verdict) for one in none] == [("all", Verdict.OK), ("none alive", Verdict.WARN)]
    early = WorkerInfo(id="a", host="x", started_at=NOW - timedelta(days=1))
    late = WorkerInfo(id="b", host="y", started_at=NOW + timedelta(minutes=1))
    found = general_findings(everything, [QueueCounts(queue="q")], [early, late], NOW)
    assert [one.value for one in found[1:]] == ["2 alive on 2 hosts", "worker b was started 60 s in the future"]
    assert found[2].verdict == Verdict.BAD
