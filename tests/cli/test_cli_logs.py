"""Log lines: text for people, JSON for machines."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from sitq import MemoryBackend, TaskQueue, Worker
from sitq.cli._logs import JsonFormatter, TextFormatter, level_number, log_tasks, set_up_logging


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("sitq")
    before = root.handlers[:], root.level, own.level
    root.handlers = []  # pytest's own: the command closes what it replaces
    yield
    root.handlers, root.level = before[0], before[1]
    own.setLevel(before[2])


async def add(a: int, b: int) -> int:
    return a + b


async def boom() -> None:
    raise ValueError("no")


async def work(log_format: str, level: str = "info") -> str:
    stream = io.StringIO()
    set_up_logging(log_format, level, stream)
    async with TaskQueue(MemoryBackend()) as queue:
        log_tasks(queue)
        await queue.enqueue(add, 1, 2)
        await queue.enqueue(boom)
        await queue.options(retry=2).enqueue(boom)
        await Worker(queue).run_until_empty()
    return stream.getvalue()


async def test_lines_for_people_name_task_id_and_duration() -> None:
    text = await work("text")
    assert "test_cli_logs:add …" in text
    assert not [line for line in text.splitlines() if "…" in line and line.endswith(" started")]
    done = next(line for line in text.splitlines() if " done in " in line)
    assert done.split()[2] == "INFO"
    assert done.endswith("ms")
    failed = next(line for line in text.splitlines() if "failed after" in line)
    assert failed.split()[2] == "ERROR"
    assert failed.endswith(": ValueError: no")
    assert 'raise ValueError("no")' in text
    assert text.count("again in ") == 1


async def test_lines_for_machines_are_json_with_the_tasks_fields() -> None:
    lines = [json.loads(line) for line in (await work("json")).splitlines()]
    assert {line["logger"] for line in lines} == {"sitq", "sitq.tasks"}
    by_event: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_event.setdefault(line.get("event", ""), []).append(line)
    (done,) = by_event["succeeded"]
    assert (done["task_name"], done["attempt"], done["queue"], done["level"]) == (
        "test_cli_logs:add", 1, "default", "info",
    )  # fmt: skip
    assert done["duration"] >= 0
    failed = by_event["failed"][0]
    assert (failed["error"], failed["reason"], failed["level"]) == ("ValueError: no", "error", "error")
    assert "raise ValueError" in failed["traceback"]
    assert by_event["deferred"][0]["delay"] >= 0


async def test_the_level_decides_what_is_said() -> None:
    quiet = await work("text", "warning")
    assert " done in " not in quiet
    assert "failed after" in quiet
    assert [line for line in (await work("text", "debug")).splitlines() if "…" in line and line.endswith(" started")]
    assert level_number("warning") == logging.WARNING


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("sitq", logging.WARNING, "", 0, message, None, None)
    made.__dict__.update(extra)
    return made


def test_colours_are_for_terminals() -> None:
    assert "\x1b[33mWARNING\x1b[0m" in TextFormatter(colours=True, dated=False).format(record("x"))
    assert "\x1b" not in TextFormatter(colours=False, dated=True).format(record("x"))


def test_a_log_line_cannot_steer_the_terminal() -> None:
    fields = {"event": "failed", "task_id": "t", "task_name": "a\x1b[2J", "error": "\x1b]0;x", "traceback": "\x1b[1m"}
    assert "\x1b" not in TextFormatter(colours=False, dated=False).format(record("x", sitq=fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"event": "failed", "reason": "timeout", "error": "TimeoutError", "duration": 2.0},
            "failed (timeout) after 2 s:",
        ),
        ({"event": "failed", "reason": "expired", "error": "late"}, "failed (expired): late"),
        (
            {"event": "lease_lost", "reason": "its lease was lost"},
            "its lease was lost; what it did here is not recorded",
        ),
        ({"event": "started"}, "started"),
        ({"event": "succeeded"}, "done"),
    ],
)
def test_each_event_reads_well(fields: dict[str, Any], words: str) -> None:
    line = TextFormatter(colours=False, dated=False).format(
        record("", sitq={"task_id": "t", "task_name": "n", **fields})
    )
    assert f"n t {words}" in line


def test_exceptions_are_written_in_both_formats() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        with_error = record("bad", exc_info=(type(error), error, error.__traceback__))
    assert "KeyError: 'x'" in TextFormatter(colours=False, dated=False).format(with_error)
    assert "KeyError: 'x'" in json.loads(JsonFormatter().format(with_error))["traceback"]


def test_logging_that_the_app_set_up_stays_unless_a_format_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    root, own = logging.getLogger(), logging.NullHandler()
    monkeypatch.setattr(root, "handlers", [own])
    set_up_logging(None, "info", io.StringIO())
    assert root.handlers == [own]
    assert logging.getLogger("sitq").level == logging.INFO
    set_up_logging("text", "info", io.StringIO())
    assert own not in root.handlers
    monkeypatch.setattr(root, "handlers", [])
    set_up_logging(None, "info", io.StringIO())
    assert isinstance(root.handlers[0].formatter, TextFormatter)
