"""`sitq retry`, `cancel`, `pause`, `resume`, `purge`."""

import pytest

from cli_kit import WIDTHS, Cli


def phase(cli: Cli, task_id: str) -> str:
    return str(cli("show", task_id, "--json").data["phase"])


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_task_is_retried_by_its_id_without_a_question(cli: Cli, ids: dict[str, str], columns: int) -> None:
    assert cli("retry", ids["failed"], ids["completed"][-8:], columns=columns).out == "2 tasks queued\n"
    assert phase(cli, ids["failed"]) == phase(cli, ids["completed"]) == "ready"


def test_a_task_that_cannot_be_retried_is_named(cli: Cli, ids: dict[str, str]) -> None:
    answer = cli("retry", ids["failed"], ids["running"], code=1)
    assert answer.out == "1 task queued\n"
    assert answer.err.startswith(f"sitq: {ids['running']} was left alone: ")


def test_filters_retry_the_failed_after_a_question(cli: Cli, ids: dict[str, str]) -> None:
    refused = cli("retry", "--queue", "default", answer="n\n", code=1)
    assert "Run again 1 task of queue 'default'? [y/N]" in refused.err
    assert "nothing was done" in refused.err
    assert phase(cli, ids["failed"]) == "failed"
    assert cli("retry", "--queue", "default", answer="y\n").out == "1 task queued\n"
    assert (phase(cli, ids["failed"]), phase(cli, ids["crashed"])) == ("ready", "quarantined")
    assert (
        cli("retry", "--phase", "quarantined", "--name", "shop:crashed", "--since", "1h", "--yes").out
        == "1 task queued\n"
    )


def test_nothing_that_fits_is_no_failure(cli: Cli) -> None:
    assert cli("retry", "--queue", "nowhere").out == "0 tasks queued\n"


def test_retry_prints_json(cli: Cli, ids: dict[str, str]) -> None:
    data = cli("retry", ids["failed"], ids["running"], "--json", code=1).data
    assert data == {
        "tasks": [{"id": ids["failed"], "answer": "queued"}, {"id": ids["running"], "answer": "left alone"}],
        "counts": {"queued": 1, "left alone": 1},
    }


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_queued_tasks_are_cancelled_and_running_ones_asked(cli: Cli, ids: dict[str, str], columns: int) -> None:
    answer = cli("cancel", ids["ready"], ids["running"], columns=columns)
    assert answer.out == "1 task cancelled\n1 task asked to stop\n"
    assert phase(cli, ids["ready"]) == "cancelled"


def test_what_only_runs_is_said_to_be_asked(cli: Cli, ids: dict[str, str]) -> None:
    assert cli("cancel", ids["running"]).out == "1 task asked to stop\n"
    assert cli("cancel", "--queue", "nowhere").out == "0 tasks cancelled\n"


def test_a_finished_task_cannot_be_cancelled(cli: Cli, ids: dict[str, str]) -> None:
    assert "it has finished" in cli("cancel", ids["completed"], code=1).err


def test_filters_cancel_what_is_alive_after_a_question(cli: Cli, ids: dict[str, str]) -> None:
    answer = cli("cancel", "--queue", "mail", "--json", answer="y\n")
    assert "Cancel 4 tasks of queue 'mail'?" in answer.err
    assert answer.data["counts"] == {"cancelled": 4}
    assert cli("cancel", "--phase", "retrying", "-y").out == "1 task cancelled\n"
    assert phase(cli, ids["retrying"]) == "cancelled"


@pytest.mark.parametrize("command", ["retry", "cancel"])
def test_ids_or_filters_but_one_of_them(cli: Cli, ids: dict[str, str], command: str) -> None:
    assert "Give ids, or one of" in cli(command, code=2).err
    assert "not both" in cli(command, ids["ready"], "--queue", "mail", code=2).err
    assert "begins or ends with" in cli(command, ids["ready"], "nothing", code=1).err
    assert phase(cli, ids["ready"]) == "ready"


# --- pause and resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_queue_is_paused_and_resumed(cli: Cli, ids: dict[str, str], columns: int) -> None:
    assert cli("pause", "mail", columns=columns).out == "queue mail is paused\n"
    assert cli("why", ids["ready"], "--json").data["why"][0]["code"] == "paused"
    assert cli("resume", "mail", columns=columns).out == "queue mail is served again\n"
    assert cli("why", ids["ready"], "--json").data["why"][0]["code"] != "paused"
    assert cli("pause", "mail", "--json").data == {"queue": "mail", "paused": True}
    assert cli("resume", "mail", "--json").data == {"queue": "mail", "paused": False}


def test_a_queue_nobody_knows_is_paused_with_a_hint(cli: Cli, ids: dict[str, str]) -> None:
    answer = cli("pause", "nosuch")
    assert answer.out == "queue nosuch is paused\n"
    assert "no task and no worker knows the queue 'nosuch': known are again, default" in answer.err
    assert cli("resume", "nosuch").err == ""
    assert cli("pause", "mail").err == ""


# --- purge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_without_filters_retention_decides(cli: Cli, ids: dict[str, str], columns: int) -> None:
    assert cli("purge", columns=columns).out == "0 tasks purged\n"


def test_filters_delete_what_has_finished_after_a_question(cli: Cli, ids: dict[str, str]) -> None:
    refused = cli("purge", "--queue", "default", answer="\n", code=1)
    assert "Delete all finished tasks of queue 'default', with their results? [y/N]" in refused.err
    assert phase(cli, ids["completed"]) == "completed"
    assert cli("purge", "--phase", "completed", "--json", answer="y\n").data == {"purged": 1}
    assert "no task has" in cli("show", ids["completed"], code=1).err
    assert cli("purge", "--queue", "default", "--yes").out == "3 tasks purged\n"
    assert phase(cli, ids["stalled"]) == "stalled"


def test_live_tasks_cannot_be_purged(cli: Cli) -> None:
    assert "cancel them first" in cli("purge", "--phase", "running", "--yes", code=2).err
