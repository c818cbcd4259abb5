"""What needs no store: durations, moments, sizes, shares, concerns."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from sitq import MemoryBackend, TaskQueue
from sitq.cli import _serve
from sitq.cli._find import Wanted
from sitq.cli._health import concerns, serves, unserved
from sitq.cli._serve import Share, shares
from sitq.cli._target import TargetError
from sitq.cli._text import age, compact, duration, moment_before, printable, seconds_of, short_id, size
from sitq.core import Phase, QueueCounts, Verdict, WorkerInfo

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"), (1.0, "1 s"), (2.34, "2.3 s"), (59.4, "59 s"), (60, "1 min"),
        (125, "2 min 5 s"), (7500, "2 h 5 min"),
        (86400, "1 d"), (90_000, "1 d 1 h"), (-5, "-5 s"),
    ],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_ages_look_back_and_ahead() -> None:
    assert age(NOW - timedelta(seconds=5), NOW) == "5 s ago"
    assert age(NOW + timedelta(minutes=2), NOW) == "in 2 min"
    assert age(None, NOW) == "-"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 * 2**20, "20 MiB"), (2**45, "32.0 TiB")]
)
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (99_999, "99999"), (123_456, "123k"), (1_234_567, "1.2M"), (123_456_789, "123M")],
)
def test_counts_fit_into_five_characters(number: int, text: str) -> None:
    assert compact(number) == text
    assert len(text) <= 5


def test_ids_are_shortened_to_what_differs() -> None:
    assert short_id("01a211de-3200-73c2-a720-e7ece55f0686") == "…e55f0686"
    assert short_id("mine") == "mine"


def test_text_from_a_store_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\x07\nc") == "a\ufffd[2Jb\ufffd\ufffd\nc"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5d", 129_600), ("2w", 1_209_600)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10m!", "-5s", "ten minutes"])
def test_what_is_no_duration_is_not_read(text: str) -> None:
    assert seconds_of(text) is None


def test_moments_are_ages_or_iso_dates() -> None:
    assert moment_before("10m", NOW) == NOW - timedelta(minutes=10)
    assert moment_before("2026-01-30", NOW) == datetime(2026, 1, 30, tzinfo=UTC)
    assert moment_before("2026-01-30T10:00+02:00", NOW) == datetime(2026, 1, 30, 8, tzinfo=UTC)
    assert moment_before("yesterday", NOW) is None


# --- queues -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queues", "expected"),
    [
        (None, [Share(None, 10)]),
        ("a, b", [Share(("a", "b"), 10)]),
        ("mail:2,default", [Share(("default",), 10), Share(("mail",), 2)]),
        ("a:1,b:3", [Share(("a",), 1), Share(("b",), 3)]),
        ("urn:x:2", [Share(("urn:x",), 2)]),
    ],
)
def test_each_capped_queue_has_a_worker_of_its_own(queues: str | None, expected: list[Share]) -> None:
    assert shares(queues, 10) == expected


@pytest.mark.parametrize("queues", ["", "a,", "a:0", "a:x", "a:", ":3", "a,a", "a,a:2", "a:²"])
def test_queues_that_make_no_sense_are_refused(queues: str) -> None:
    with pytest.raises(TargetError, match="--queues"):
        shares(queues, 10)


def counts(queue: str, paused: bool = False, **phases: int) -> QueueCounts:
    ready = NOW - timedelta(minutes=3) if phases.get("ready") else None
    return QueueCounts(queue=queue, phases={Phase(p): n for p, n in phases.items()}, paused=paused, oldest_ready=ready)


def test_a_worker_serves_its_queues_or_all() -> None:
    assert serves(WorkerInfo(id="w"), "a")
    assert serves(WorkerInfo(id="w", queues=("a",)), "a")
    assert not serves(WorkerInfo(id="w", queues=("b",)), "a")


def test_only_ready_tasks_of_a_queue_that_runs_are_left_alone() -> None:
    queues = [counts("a", ready=1), counts("b", ready=1), counts("c", scheduled=1), counts("d", paused=True, ready=1)]
    alone = unserved(queues, [WorkerInfo(id="w", queues=("b",))])
    assert [queue.queue for queue in alone] == ["a"]


async def test_a_store_that_counts_slowly_is_seldom_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    pauses: list[float] = []

    class Slow(MemoryBackend):
        async def count_tasks(self) -> list[QueueCounts]:
            now[0] += takes
            return await super().count_tasks()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr(_serve, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(_serve, "asyncio", SimpleNamespace(sleep=sleep))
    async with TaskQueue(Slow()) as queue:
        for takes in (0.01, 3.0):  # noqa: B007 (`Slow` reads it)
            with pytest.raises(asyncio.CancelledError):
                await _serve.warn_of_unserved(queue, [])
    assert pauses == [60.0, 1500.0]


def test_concerns_name_the_queue_the_number_and_the_remedy() -> None:
    queues = [counts("a", ready=2), counts("b", stalled=1), counts("c", paused=True, ready=1, scheduled=2)]
    found = concerns(queues, [WorkerInfo(id="w", queues=("b",))], NOW)
    assert [(one.name, one.verdict, one.number) for one in found] == [
        ("queue a", Verdict.BAD, 2), ("queue b", Verdict.WARN, 1), ("queue c", Verdict.WARN, 3),
    ]  # fmt: skip
    assert "2 tasks ready and no worker serves it; the oldest has waited 3 min" in found[0].value
    assert "--queues a" in found[0].advice
    assert "sitq resume c" in found[2].advice
    assert concerns([counts("a", ready=1)], [WorkerInfo(id="w")], NOW) == []


def test_filters_read_as_a_sentence() -> None:
    assert Wanted(Phase.FAILED, "mail", "shop:send", NOW).words(1) == (
        "1 failed task of queue 'mail' called shop:send since 2026-01-31 12:00 UTC"
    )
    assert Wanted().words() == "tasks"
    assert not Wanted()
    assert Wanted(queue="")
