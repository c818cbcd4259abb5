"""`sitq tasks` and `sitq show`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli_kit import WIDTHS, Cli
from sitq.cli import _find
from sitq.cli._tasks import _remark
from sitq.cli._text import short_id
from sitq.core import Task, phase_of
from sitq.exceptions import UnresolvableError
from sitq.serialization import CloudpickleSerializer

LIVE = ["urgent", "ready", "first", "scheduled"]


@pytest.mark.parametrize("columns", WIDTHS)
def test_tasks_are_listed_newest_first(cli: Cli, ids: dict[str, str], columns: int) -> None:
    lines = cli("tasks", columns=columns).out.splitlines()
    assert lines[0].split() == ["id", "phase", "queue", "name", "runs", "enqueued" if columns == 140 else "age"]
    shown = [line.split()[0] for line in lines[1:]]
    names = [*LIVE, "stalled", "running", "retrying", "crashed", "cancelled", "failed", "completed"]
    assert sorted(shown) == sorted(ids[name] if columns == 140 else short_id(ids[name]) for name in names)
    assert lines[1].split()[:4] == [shown[0], "ready", "mail", "shop:urgent"]
    scheduled = next(line for line in lines if "shop:scheduled" in line)
    assert "in 30 d" in scheduled
    assert ("retry after KeyError: 'x'" in "\n".join(lines)) == (columns == 140)


def test_filters_narrow_the_list(cli: Cli, ids: dict[str, str]) -> None:
    def named(*arguments: str) -> list[str]:
        return [task["name"].removeprefix("shop:") for task in cli("tasks", "--json", *arguments).data["tasks"]]

    assert named("--queue", "mail") == LIVE
    assert named("-q", "mail", "--phase", "ready") == LIVE[:3]
    assert named("--name", "shop:failed") == ["failed"]
    assert named("--phase", "quarantined") == ["crashed"]
    assert named("--since", "1h", "--limit", "1") == ["urgent"]
    assert named("--since", "2999-01-01") == []


def test_an_empty_list_says_what_there_is_none_of(cli: Cli) -> None:
    assert cli("tasks", "--phase", "expired", "-q", "mail").out == "There are no expired tasks of queue 'mail'.\n"


def test_pages_follow_each_other(cli: Cli, ids: dict[str, str]) -> None:
    first = cli("tasks", "-n", "2")
    assert f"More: the same with --after {ids['ready']}" in first.out
    second = cli("tasks", "-n", "2", "--after", ids["ready"], "--json").data
    assert [task["name"] for task in second["tasks"]] == ["shop:first", "shop:scheduled"]
    assert second["next"] == ids["scheduled"]
    last = cli("tasks", "-q", "mail", "-n", "2", "--after", ids["ready"][-8:], "--json").data
    assert last["next"] is None


def test_json_has_no_call(cli: Cli, ids: dict[str, str]) -> None:
    answer = cli("tasks", "--phase", "running", "--json")
    (task,) = answer.data["tasks"]
    assert (task["id"], task["phase"], task["status"]) == (ids["running"], "running", "running")
    assert (task["worker_id"], task["queue"], task["attempt"]) == ("box-7-cafe", "work", 1)
    assert "payload" not in task
    assert "secret" not in answer.out


def test_a_moment_that_cannot_be_read_is_a_usage_error(cli: Cli) -> None:
    assert "write 10m, 2h, 1d" in cli("tasks", "--since", "yesterday", code=2).err
    error = cli("tasks", "--phase", "spoiled", code=2).err
    assert "'spoiled' is none of scheduled, ready," in error
    assert "Value error" not in error


# --- one task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_failed_task_is_shown_in_full(cli: Cli, ids: dict[str, str], columns: int) -> None:
    out = cli("show", ids["failed"], columns=columns).out
    for words in (
        ids["failed"],
        "shop:failed",
        "failed (error)",
        "1, crashes 0",
        "ValueError: no",
        '  File "shop.py", line 3',
    ):
        assert words in out
    for name in ("enqueued", "started", "finished", "took"):
        assert f"\n{name} " in out
    assert "secret" not in out


def test_live_tasks_show_where_and_when(cli: Cli, ids: dict[str, str]) -> None:
    cli("cancel", ids["running"])
    out = cli("show", ids["running"]).out
    for words in ("box-7-cafe, lease ends in ", "cancel    requested", "options   timeout 1 min 30 s"):
        assert words in out
    assert "due       " in cli("show", ids["scheduled"]).out
    assert "unique 'daily'" in cli("show", ids["first"]).out


def test_arguments_and_values_are_shown_on_demand_only(cli: Cli, ids: dict[str, str]) -> None:
    out = cli("show", ids["completed"], "--show-args").out
    assert "args    [['secret', 'completed']]" in out
    assert "kwargs  {'indent': 2}" in out
    assert "value   'the value'" in out
    hidden = cli("show", ids["completed"], "--json")
    assert "secret" not in hidden.out
    assert "the value" not in hidden.out
    assert "call" not in hidden.data
    shown = cli("show", ids["completed"], "--json", "--show-args").data
    assert shown["call"] == {"args": [["secret", "completed"]], "kwargs": {"indent": 2}, "value": "the value"}


def test_arguments_that_cannot_be_decoded_say_why(
    cli: Cli, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def decode(*arguments: object) -> None:
        tries.append(arguments)
        raise UnresolvableError("cannot resolve 'shop:ready'")

    monkeypatch.setattr(CloudpickleSerializer, "decode_call", decode)
    monkeypatch.setattr(CloudpickleSerializer, "decode_result", decode)
    assert "the value" not in cli("show", ids["completed"]).out
    assert not tries  # hidden means not even decoded: that may run code
    assert "value  cannot be decoded here: cannot resolve" in cli("show", ids["completed"], "--show-args").out
    assert "cannot be decoded here: cannot resolve" in cli("show", ids["ready"], "--show-args").out


def test_json_has_the_result(cli: Cli, ids: dict[str, str]) -> None:
    data = cli("show", ids["failed"], "--json").data
    assert (data["phase"], data["result"]["error"]) == ("failed", "ValueError: no")
    assert data["result"]["traceback"].startswith("Traceback")
    assert data["options"]["queue"] == "default"
    assert cli("show", ids["ready"], "--json").data["result"] is None


def test_ids_may_be_abbreviated_from_both_ends(cli: Cli, ids: dict[str, str]) -> None:
    for part in (
        ids["ready"],
        ids["ready"][-8:],
        f"…{ids['ready'][-8:]}",
        ids["ready"][:-1],
        ids["ready"][-8:].upper(),
    ):
        assert cli("show", part, "--json").data["id"] == ids["ready"]


def test_ids_that_lead_nowhere_or_to_many_are_refused(cli: Cli, ids: dict[str, str]) -> None:
    assert "begins or ends with 'nothing'" in cli("show", "nothing", code=1).err
    assert "needs 4 characters" in cli("show", ids["ready"][-3:], code=1).err
    ambiguous = cli("show", ids["ready"][:6], code=1).err
    assert ids["urgent"] in ambiguous
    assert ambiguous.rstrip().endswith(", …")


def test_a_store_that_is_missing_is_not_made(cli: Cli, tmp_path: Path) -> None:
    missing = tmp_path / "typo.db"
    said = cli("tasks", "--backend", f"sqlite:///{missing}", code=3).err
    assert said == f"sitq: there is no {missing}: check the path; a producer or a worker makes it\n"
    assert not missing.exists()


def test_more_tasks_than_a_page_are_looked_through(
    cli: Cli, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_find, "_PAGE", 2)
    assert cli("show", ids["completed"][-8:], "--json").data["id"] == ids["completed"]
    assert cli("cancel", "--queue", "mail", "--yes").out == "4 tasks cancelled\n"
    monkeypatch.setattr(_find, "_LOOKED_THROUGH", 4)
    assert "among the newest 4: give all of it" in cli("show", ids["completed"][-8:], code=1).err


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=9)


@pytest.mark.parametrize(
    ("task", "remark"),
    [
        (Task(id="t", status="running", lease_expires_at=LATER, cancel_requested=True), "asked to stop"),
        (Task(id="t", status="running", lease_expires_at=LATER, progress={"done": 3}), '{"done": 3}'),
        (Task(id="t", status="running", lease_expires_at=LATER, progress="half"), "half"),
        (Task(id="t", status="failed", reason="timeout"), "timeout"),
        (Task(id="t", status="failed", reason="error"), ""),
        (Task(id="t", crashes=2, created_at=NOW), "2 crashes"),
        (Task(id="t", eta=LATER, created_at=NOW, attempt=1, reason="retry after E"), "in 9 s, retry after E"),
    ],
)
def test_what_is_special_about_a_task_is_remarked(task: Task, remark: str) -> None:
    assert _remark(task, phase_of(task, NOW), NOW) == remark
