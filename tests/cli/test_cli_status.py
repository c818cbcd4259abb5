"""`sitq status`: tables that fit, JSON, and the live view."""

import asyncio
import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from cli_kit import WIDTHS, Cli
from sitq.cli._status import Snapshot, render
from sitq.core import Finding, Phase, QueueCounts, Verdict, WorkerInfo

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def drawn(snapshot: Snapshot, columns: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=columns, markup=False, highlight=False)
    console.print(render(snapshot, columns))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    return out.getvalue()


def snapshot(phases: Mapping[str, int], **more: object) -> Snapshot:
    queue = QueueCounts(queue="default", phases=phases, oldest_ready=NOW - timedelta(hours=2, minutes=5))
    worker = WorkerInfo(id="box-7-cafe", started_at=NOW - timedelta(days=1), seen_at=NOW - timedelta(seconds=2))
    fields = {"now": NOW, "findings": [], "queues": [queue], "workers": [worker], "running": {"box-7-cafe": 3}} | more
    return Snapshot(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", WIDTHS)
def test_ten_phases_and_a_long_name_fit(columns: int) -> None:
    phases: dict[str, int] = {phase: number for number, phase in enumerate(Phase, 4_000_001)}
    queues = [QueueCounts(queue="a-queue-with-quite-a-long-name", phases=phases, paused=True)]
    text = drawn(snapshot(phases, queues=queues), columns)
    wide = columns == 140
    for word in ("scheduled", "quarantined", "4,000,010") if wide else ("sched", "quar", "4.0M"):
        assert word in text
    header = text.splitlines()[2]
    assert "…" not in header
    assert len(header.split()) == 12


def test_columns_of_nothing_but_zeros_are_left_out() -> None:
    header = drawn(snapshot({Phase.READY: 1}), 80).splitlines()[2]
    assert header.split() == ["queue", "ready", "running", "completed", "failed", "waiting"]


def test_words_are_shortened_rather_than_names() -> None:
    phases: dict[str, int] = dict.fromkeys((Phase.SCHEDULED, Phase.RETRYING), 1)
    queues = [QueueCounts(queue="a-longish-queue", phases=phases, oldest_ready=NOW - timedelta(hours=2, minutes=5))]
    assert "a-longish-queue " in drawn(snapshot({}, queues=queues), 80)


def test_a_worker_shows_what_it_does_and_when_it_was_heard_of() -> None:
    row = next(line for line in drawn(snapshot({}), 80).splitlines() if "cafe" in line)
    assert row.split() == ["box-7-cafe", "all", "3", "1", "d", "ago", "2", "s", "ago"]


def test_the_oldest_waiting_task_and_the_sizes_are_shown() -> None:
    findings = [
        Finding(name="store", value="tasks.db"), Finding(name="durability", value="full: on disk"),
        Finding(name="file size", value="3 MiB", number=3.0),
        Finding(name="log size", value="9 GiB", verdict=Verdict.WARN),
    ]  # fmt: skip
    text = drawn(snapshot({Phase.READY: 1}, findings=findings), 80)
    assert text.splitlines()[0] == "tasks.db · full · 3 MiB · log 9 GiB"
    assert "2 h 5 min" in text


def test_what_is_wrong_is_said() -> None:
    text = drawn(snapshot({Phase.READY: 1}, workers=[]), 80)
    assert "No worker is alive." in text
    assert "! queue default: 1 task ready and no worker serves it" in text


def test_an_empty_store_says_so() -> None:
    assert "No tasks yet." in drawn(snapshot({}, queues=[]), 80)


def test_names_from_the_store_are_no_markup() -> None:
    queues = [QueueCounts(queue="[red]x[/red]\x1b[2J", phases={Phase.READY: 1})]
    text = drawn(snapshot({}, queues=queues), 140)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_command_shows_queues_and_workers(cli: Cli, tmp_path: Path, columns: int) -> None:
    out = cli("status", columns=columns).out
    assert out.splitlines()[0].startswith(f"{tmp_path / 'tasks.db'} ·"[:columns])
    for word in ("default", "again", "mail", "work", "box-7-cafe"):
        assert word in out
    assert "! queue mail: 3 tasks ready and no worker serves it" in out
    assert "! queue default: 1 task stalled" in out


def test_the_command_prints_json(cli: Cli, tmp_path: Path) -> None:
    data = cli("status", "--json").data
    assert data["store"]["store"] == str(tmp_path / "tasks.db")
    assert data["store"]["file size"] > 0
    phases = {queue["queue"]: {p: n for p, n in queue["phases"].items() if n} for queue in data["queues"]}
    assert phases == {
        "again": {"retrying": 1},
        "default": {"stalled": 1, "completed": 1, "failed": 1, "cancelled": 1, "quarantined": 1},
        "mail": {"scheduled": 1, "ready": 3},
        "work": {"running": 1},
    }
    assert [(worker["id"], worker["running"]) for worker in data["workers"]] == [("box-7-cafe", 1)]
    assert [one["name"] for one in data["concerns"]] == ["queue mail", "queue default"]


def test_the_paused_queue_is_marked(cli: Cli) -> None:
    cli("pause", "mail")
    assert "mail (paused)" in cli("status", columns=140).out
    assert [queue["paused"] for queue in cli("status", "--json").data["queues"]] == [False, False, True, False]


class Looks:
    """Lets a watch look so many times, and then presses Ctrl+C."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        self.left = number
        self.sleep = asyncio.sleep
        monkeypatch.setattr("sitq.cli._status.asyncio.sleep", self)

    async def __call__(self, seconds: float) -> None:
        assert seconds == 0.25
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        await self.sleep(0)


def test_watching_goes_on_until_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Looks(monkeypatch, 3)
    out = cli("status", "--watch", "--interval", "0.25").out
    assert "box-7-cafe" in out


def test_watching_in_json_prints_a_document_a_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Looks(monkeypatch, 3)
    lines = cli("status", "-w", "--interval", "0.25", "--json").out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith('{"time": ') for line in lines)
