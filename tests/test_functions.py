"""`@task`, names of functions and the way back, and the decisions that are pure."""

from __future__ import annotations

import importlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sitq
from sitq import Retry, TaskQueue, UnresolvableError, ValidationError, Worker, task
from sitq._prefetch import FEW, adapted, prefetch_limit, smoothed
from sitq.functions import TaskSettings, function_name, is_importable, resolve, settings_of
from sitq.retry import backoff, quarantined, retry_delay, unresolvable_delay


@task(queue="mail", retry=3, retry_on=(OSError, ValueError), give_up_on=ConnectionError)
def send() -> None: ...


class Holder:
    @staticmethod
    def static() -> None: ...


def test_the_decorator_returns_the_function_itself() -> None:
    def plain() -> int:
        return 3

    assert task(plain) is plain
    assert task()(plain) is plain
    assert plain() == 3
    assert settings_of(send).options["queue"] == "mail"
    assert settings_of(len) == TaskSettings()


def test_names_lead_there_and_back() -> None:
    assert function_name(send) == "test_functions:send"
    assert resolve("test_functions:send") is send
    assert resolve("test_functions:Holder.static") is Holder.static
    assert is_importable("test_functions:send", send)
    assert not is_importable("test_functions:send", Holder.static)
    assert not is_importable(function_name(lambda: 1), lambda: 1)
    assert not is_importable(function_name(partial(send)), partial(send))
    assert not is_importable("nowhere:f", send)


@pytest.mark.parametrize("name", ["no_such_module:f", "test_functions:nothing", "test_functions:Retry.x.y", "f", ""])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(UnresolvableError, match="deploy the code"):
        resolve(name)
    with pytest.raises(UnresolvableError, match="is not a function"):
        resolve("test_functions:NOT_A_FUNCTION")


NOT_A_FUNCTION = 5


def test_a_module_that_breaks_on_import_is_unresolvable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnresolvableError, match="ZeroDivisionError"):
        resolve("breaks_on_import:f")


def test_a_reload_replaces_and_another_file_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from sitq import task\n@task\ndef twin(): return {}\n"
    (tmp_path / "twins.py").write_text(source.format(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("twins")
    first = module.twin
    importlib.reload(module)
    assert resolve("twins:twin") is module.twin is not first
    other = compile(source.format(2), str(tmp_path / "elsewhere.py"), "exec")
    with pytest.raises(ValidationError, match="rename one"):
        exec(other, {"__name__": "twins"})
    monkeypatch.delitem(sys.modules, "twins")


@pytest.mark.parametrize("bad", [{"retry_on": 5}, {"give_up_on": (5,)}, {"priority": 11}, {"name": "x"}], ids=str)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**bad)
    with pytest.raises(ValidationError, match="decorates a function"):
        task(5)  # type: ignore[call-overload]


# --- retry ------------------------------------------------------------------------------------------------------------


def test_who_is_tried_again() -> None:
    settings = settings_of(send)
    three = Retry(max_attempts=3, base=0)
    assert retry_delay(ValueError(), 1, three, settings) == 0
    assert retry_delay(ValueError(), 2, three, settings) == 0
    assert retry_delay(ValueError(), 3, three, settings) is None
    assert retry_delay(ConnectionError(), 1, three, settings) is None  # an OSError, but given up on
    assert retry_delay(KeyError(), 1, three, settings) is None
    assert retry_delay(ValueError(), 1, None, settings) is None
    assert retry_delay(SystemExit(), 1, three, TaskSettings()) is None


@given(st.integers(1, 10_000), st.floats(0, 1e6), st.floats(0, 1e6))
def test_backoff_stays_within_its_bounds(attempt: int, base: float, cap: float) -> None:
    assert 0 <= backoff(attempt, base, cap) <= min(cap, base * 2.0 ** min(attempt - 1, 60))


def test_quarantine_needs_proof() -> None:
    assert not quarantined(crashes=9, solo_crashes=2)
    assert quarantined(crashes=3, solo_crashes=3)
    assert quarantined(crashes=10, solo_crashes=0)


def test_a_deploy_is_waited_for_a_day() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    first = unresolvable_delay(None, now)
    assert first is not None
    delay, reason = first
    assert 0 < delay <= 1
    later = unresolvable_delay(reason, now + timedelta(hours=23))
    assert later is not None
    assert 100 < later[0] <= 300
    assert later[1] == reason
    assert unresolvable_delay(reason, now + timedelta(hours=24)) is None


async def test_a_name_that_is_not_there_yet_waits_at_no_cost(queue: TaskQueue) -> None:
    handle = await queue.enqueue(send)
    stored = await queue.get_task(handle)
    assert stored is not None
    from sitq import functions

    registered = functions._registry.pop("test_functions:send")
    globals().pop("send")
    try:
        async with Worker(queue):
            from waiting import until

            async def waits() -> bool:
                task = await queue.get_task(handle)
                return task is not None and (task.reason or "").startswith("unresolvable since")

            await until(waits)
            stored = await queue.get_task(handle)
            assert stored is not None
            assert (stored.status, stored.attempt) in {("queued", 0), ("running", 1)}
            functions._registry["test_functions:send"] = registered
            await handle.result(timeout=60)
    finally:
        functions._registry["test_functions:send"] = registered
        globals()["send"] = registered


# --- prefetch ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 1000), st.floats(0, 10) | st.none(), st.integers(0, 1000))
def test_prefetch_is_bounded_and_zero_for_long_tasks(slots: int, average: float | None, most: int) -> None:
    limit = prefetch_limit(slots, average, most)
    assert 0 <= limit <= most
    if average is None or average >= 0.05:
        assert limit == 0
    elif average > 0:
        assert limit * average <= slots * 0.05 + average


def test_what_waits_too_long_for_a_slot_is_held_less() -> None:
    most = FEW
    for _ in range(10):
        most = adapted(most, 0.01, 1000)
    assert most == 1000
    for wanted in (500, FEW, FEW):
        most = adapted(most, 0.06, 1000)
        assert most == wanted


@given(st.integers(0, 2000), st.lists(st.floats(0, 1)))
def test_no_more_is_held_than_the_store_says(limit: int, waits: list[float]) -> None:
    most = min(FEW, limit)
    for waited in waits:
        most = adapted(most, waited, limit)
        assert min(FEW, limit) <= most <= limit


@given(st.integers(1, 100), st.floats(1e-5, 0.01), st.floats(1, 100))
def test_a_step_to_long_tasks_stops_the_prefetch_within_a_few(slots: int, short: float, long: float) -> None:
    average: float | None = None
    for _ in range(100):
        average = smoothed(average, short)
    assert prefetch_limit(slots, average, 250) > 0
    for _ in range(2):
        average = smoothed(average, long)
    assert prefetch_limit(slots, average, 250) == 0


@given(st.lists(st.floats(0, 100), min_size=1))
def test_the_average_stays_among_what_was_seen(durations: list[float]) -> None:
    average: float | None = None
    for duration in durations:
        average = smoothed(average, duration)
    assert average is not None
    assert min(durations) <= average * (1 + 1e-9) + 1e-12
    assert average <= max(durations) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    "values",
    [
        {"max_attempts": 0}, {"max_attempts": -1}, {"max_attempts": 1.5}, {"max_attempts": True},
        {"base": -1}, {"base": float("nan")}, {"base": "1"}, {"base": True},
        {"cap": -1}, {"cap": float("nan")}, {"cap": float("inf")}, {"cap": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_retry_that_cannot_be_is_refused_where_it_is_written(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        Retry(**values)


# --- the public face --------------------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_sorted() -> None:
    assert list(sitq.__all__) == sorted(sitq.__all__)
    for name in sitq.__all__:
        assert getattr(sitq, name).__doc__, name
    assert set(sitq.__all__) <= set(dir(sitq))
    assert {"PostgresBackend", "RedisBackend"} <= set(dir(sitq))
    with pytest.raises(AttributeError, match="nonsense"):
        sitq.nonsense  # noqa: B018


WITHOUT_EXTRAS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"asyncpg", "hiredis", "redis", "rich", "typer", "pytest"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from sitq import *
print(TaskQueue.__name__, SQLiteBackend.__name__)
from sitq import PostgresBackend
"""


def test_a_star_import_needs_no_extra() -> None:
    answer = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=False)
    assert answer.stdout.split() == ["TaskQueue", "SQLiteBackend"], answer.stderr
    assert "pip install 'sitq-queue[postgres]'" in answer.stderr


def test_only_what_is_asked_for_is_imported() -> None:
    code = "import sys, sitq; print(sorted(m for m in sys.modules if m.startswith(('sitq.b', 'cloudpickle', 'typer'))))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['sitq.backends', 'sitq.backends.base', 'sitq.backends.urls']"
