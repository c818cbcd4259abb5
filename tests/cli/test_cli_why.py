"""Why a task does not run: the pure answer to facts, and the command."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cli_kit import WIDTHS, Cli
from sitq.cli._why import Ahead, Answer, Facts, ahead_of, explain
from sitq.core import Phase, QueueCounts, Result, Task, TaskOptions, WorkerInfo

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HERE = (WorkerInfo(id="w1"),)


def task(**fields: Any) -> Task:
    options = TaskOptions(**{name: fields.pop(name) for name in ("unique", "expires_at", "priority") if name in fields})
    known: dict[str, Any] = {"id": "t", "name": "shop:send", "created_at": NOW - 60 * SECOND, "options": options}
    return Task(**known | fields)


def facts(one: Task, **more: Any) -> Facts:
    defaults = {"counts": QueueCounts(queue="default"), "workers": HERE, "ahead": Ahead()}
    return Facts(task=one, now=NOW, **{**defaults, **more})


def codes(answer: Answer) -> list[str]:
    return [obstacle.code for obstacle in answer.obstacles]


def text(answer: Answer) -> str:
    return " ".join(obstacle.text for obstacle in answer.obstacles)


def test_a_ready_task_with_nothing_in_its_way_is_next() -> None:
    answer = explain(facts(task()))
    assert codes(answer) == ["next"]
    assert "It has been ready for 1 min." in answer.notes


def test_a_task_for_later_says_when() -> None:
    answer = explain(facts(task(eta=NOW + 40 * SECOND)))
    assert (answer.phase, codes(answer)) == (Phase.SCHEDULED, ["scheduled"])
    assert text(answer) == "It is due in 40 s, at 2026-01-31 12:00:40 UTC."


def test_a_retry_says_what_went_wrong() -> None:
    answer = explain(facts(task(eta=NOW + 9 * SECOND, attempt=2, reason="retry after KeyError: 1")))
    assert codes(answer) == ["retrying"]
    assert "Run 2 did not succeed (retry after KeyError: 1); the next one is in 9 s" in text(answer)


def test_a_deferred_task_says_that_it_asked() -> None:
    answer = explain(facts(task(eta=NOW + 9 * SECOND, reason="rate limit")))
    assert codes(answer) == ["deferred"]
    assert "rate limit" in text(answer)


def test_a_function_nobody_can_import_says_since_when() -> None:
    since = NOW - timedelta(hours=2)
    answer = explain(facts(task(eta=NOW + 9 * SECOND, reason=f"unresolvable since {since.isoformat()}")))
    assert codes(answer) == ["unresolvable"]
    assert "No worker could import shop:send since 2026-01-31 10:00:00 UTC (2 h ago)" in text(answer)
    assert "2026-02-01 10:00:00 UTC is the last moment" in text(answer)
    assert "deploy" in answer.obstacles[0].advice


def test_all_that_is_in_the_way_is_named_the_first_thing_first() -> None:
    paused = QueueCounts(queue="default", paused=True)
    answer = explain(facts(task(eta=NOW + 40 * SECOND), counts=paused, workers=()))
    assert codes(answer) == ["scheduled", "paused", "no_worker"]
    assert answer.obstacles[1].advice == "sitq resume default"


def test_workers_of_other_queues_do_not_help() -> None:
    answer = explain(facts(task(), workers=(WorkerInfo(id="w", queues=("mail", "audio")),)))
    assert codes(answer) == ["no_worker"]
    assert "those alive serve audio, mail" in text(answer)
    assert explain(facts(task(), workers=())).obstacles[0].text == "No worker is alive."


def test_the_line_before_it_is_counted() -> None:
    answer = explain(facts(task(), ahead=Ahead(higher=4000, older=2), running=10))
    assert codes(answer) == ["behind", "busy"]
    assert "behind 4,000 of higher priority and 2 due earlier" in text(answer)
    assert "The worker of its queue is busy with 10 tasks" in text(answer)
    assert "at least 7 due earlier" in text(explain(facts(task(), ahead=Ahead(older=7, complete=False))))


def test_who_is_ahead_follows_the_order_of_reserve() -> None:
    mine = task(priority=3)
    others = [
        mine,
        task(id="higher", priority=4, created_at=NOW),
        task(id="older", priority=3, created_at=NOW - 61 * SECOND),
        task(id="same moment", priority=3),
        task(id="younger", priority=3, created_at=NOW - 59 * SECOND),
        task(id="old, but was due later", priority=3, created_at=NOW - 99 * SECOND, eta=NOW - 59 * SECOND),
        task(id="lower", priority=2, created_at=NOW - 99 * SECOND),
    ]
    assert ahead_of(mine, others) == Ahead(higher=1, older=1)


def test_a_store_that_cannot_be_inspected_admits_it() -> None:
    assert codes(explain(Facts(task=task(), now=NOW))) == ["unknown"]


def test_a_running_task_says_where() -> None:
    running = task(status="running", worker_id="w1", attempt=2, lease_expires_at=NOW + SECOND)
    assert text(explain(facts(running))) == "It is running on w1, attempt 2."
    running.cancel_requested = True
    assert codes(explain(facts(running))) == ["stopping"]


def test_a_stalled_task_says_who_may_take_it_over() -> None:
    stalled = task(status="running", worker_id="w0", lease_expires_at=NOW - 5 * SECOND)
    assert "the lease ended 5 s ago; another worker takes it over" in text(explain(facts(stalled)))
    alone = explain(facts(stalled, workers=()))
    assert "no worker is alive to take it over" in text(alone)
    assert "--queues default" in alone.obstacles[0].advice


@pytest.mark.parametrize(
    ("reason", "phase", "words"),
    [
        ("error", Phase.FAILED, "It failed 5 s ago: E: no."),
        (None, Phase.FAILED, "It failed"),
        ("cancelled", Phase.CANCELLED, "It was cancelled"),
        ("expired", Phase.EXPIRED, "It expired"),
        ("quarantined", Phase.QUARANTINED, "quarantine"),
        ("discarded", Phase.FAILED, "gave itself up"),
        ("timeout", Phase.FAILED, "longer than its timeout"),
        ("undecodable", Phase.FAILED, "decode"),
    ],
)
def test_a_failed_task_says_why_and_how_to_run_it_again(reason: str | None, phase: Phase, words: str) -> None:
    result = Result(task_id="t", status="failed", error="E: no", finished_at=NOW - 5 * SECOND)
    answer = explain(facts(task(status="failed", reason=reason), result=result))
    assert answer.phase == phase
    assert words in text(answer)
    assert "sitq retry t" in answer.obstacles[0].advice


def test_a_completed_task_says_so() -> None:
    result = Result(task_id="t", finished_at=NOW - 5 * SECOND)
    assert text(explain(facts(task(status="completed"), result=result))) == "It completed 5 s ago."


def test_notes_tell_of_keys_expiry_crashes_and_the_last_time() -> None:
    one = task(unique="daily", expires_at=NOW + 60 * SECOND, crashes=2, reason="retry after E")
    notes = " ".join(explain(facts(one)).notes)
    for words in ("unique key 'daily'", "expires in 1 min", "2 of its runs ended", "Last time: retry after E"):
        assert words in notes
    assert explain(facts(task(status="completed", unique="daily", crashes=1))).notes == []


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def reason_of(cli: Cli, ids: dict[str, str]) -> Callable[[str], list[str]]:
    return lambda name: [one["code"] for one in cli("why", ids[name], "--json").data["why"]]


def test_the_command_gathers_the_facts(reason_of: Callable[[str], list[str]]) -> None:
    assert reason_of("scheduled") == ["scheduled", "no_worker"]
    assert reason_of("retrying") == ["retrying"]
    assert reason_of("ready") == ["no_worker"]
    assert reason_of("running") == ["running"]
    assert reason_of("stalled") == ["stalled"]
    assert reason_of("completed") == ["completed"]
    assert reason_of("crashed") == ["quarantined"]


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_command_prints_answer_advice_and_notes(cli: Cli, ids: dict[str, str], columns: int) -> None:
    out = cli("why", ids["first"], columns=columns).out
    assert f"shop:first {ids['first']} ready" in out
    assert "No live worker serves its queue 'mail'" in out
    assert "→ sitq worker app:queue --queues mail" in out
    assert "holds the unique key 'daily'" in out.replace("\n", " ")


@pytest.mark.usefixtures("mail_worker")
def test_the_command_counts_the_line(cli: Cli, ids: dict[str, str]) -> None:
    answer = cli("why", ids["ready"], "--json").data
    assert [one["code"] for one in answer["why"]] == ["behind"]
    assert "1 of higher priority and 1 due earlier" in answer["why"][0]["text"]
