"""The six methods, called by hand as the spec page shows them: what every store must do."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from sitq.backends.base import Backend
from sitq.conformance._kit import Kit, requires
from sitq.conformance.calls import add
from sitq.core import Outcome, Result, Task, TaskOptions, utcnow
from sitq.exceptions import BackendError, InvalidTransitionError, TaskNotFoundError, ValidationError


class SixTests(Kit):
    """One task at a time, and who may move it where."""

    async def test_stored_task_is_found(self, backend: Backend) -> None:
        """A stored task is found by its id, queued."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        task = await self.stored(backend, "x")
        assert (task.id, task.status) == ("x", "queued")

    async def test_unknown_ids_read_as_none(self, backend: Backend) -> None:
        """Reads answer None for an id the store does not know."""
        assert await backend.get_task("nobody") is None
        assert await backend.get_result("nobody") is None

    async def test_no_result_before_there_is_one(self, backend: Backend) -> None:
        """A task that has not ended has no result."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        assert await backend.get_result("x") is None
        await backend.reserve_task("w")
        assert await backend.get_result("x") is None

    async def test_enqueue_is_idempotent_by_id(self, backend: Backend) -> None:
        """Storing an id again changes nothing: not the call, and not how often it runs."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.enqueue_task(Task(id="x"), add, (100, 200), {})
        (task,) = await backend.reserve_task("w", 10)
        assert task.args == (1, 2)
        assert await backend.reserve_task("w", 10) == []

    async def test_enqueue_again_does_not_revive(self, backend: Backend) -> None:
        """Storing the id of a running or finished task again leaves it as it is."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.reserve_task("w")
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        assert (await self.stored(backend, "x")).status == "running"
        await backend.update_task_status("x", "completed")
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        assert (await self.stored(backend, "x")).status == "completed"
        assert await backend.reserve_task("w") == []

    async def test_reserve_hands_over_the_call(self, backend: Backend) -> None:
        """A reserved task has its function and arguments, and is running."""
        await backend.enqueue_task(Task(id="x"), add, (1,), {"b": 41})
        (task,) = await backend.reserve_task("w")
        assert task.id == "x"
        assert task.function is not None
        assert task.function(*task.args, **task.kwargs) == 42
        assert (await self.stored(backend, "x")).status == "running"

    async def test_reserve_respects_max_tasks(self, backend: Backend) -> None:
        """Reserve gives at most `max_tasks`, one by default, and each task only once."""
        for number in range(5):
            await backend.enqueue_task(Task(id=f"x{number}"), add, (1, 2), {})
        batches = [
            await backend.reserve_task("w"),
            await backend.reserve_task("w", 3),
            await backend.reserve_task("v", 9),
        ]
        assert [len(batch) for batch in batches] == [1, 3, 1]
        assert {task.id for batch in batches for task in batch} == {f"x{number}" for number in range(5)}

    async def test_reserve_returns_at_once_when_empty(self, backend: Backend) -> None:
        """Reserve gives an empty list when nothing is ready, without waiting."""
        async with asyncio.timeout(30):
            assert await backend.reserve_task("w", 10) == []

    async def test_the_flow_of_the_spec_page(self, backend: Backend) -> None:
        """Reserve, store the result, set the status: by hand, without queue or worker."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        (task,) = await backend.reserve_task("w", max_tasks=1)
        assert task.function is not None
        await backend.store_result("x", Result(task_id="x", value=task.function(*task.args, **task.kwargs)))
        await backend.update_task_status("x", "completed")
        result = await backend.get_result("x")
        assert result is not None
        assert (result.status, result.value) == ("success", 3)
        assert (await self.stored(backend, "x")).status == "completed"
        assert await backend.reserve_task("w") == []

    async def test_results_are_overwritten(self, backend: Backend) -> None:
        """A second result replaces the first."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.store_result("x", Result(task_id="x", value=1))
        await backend.store_result("x", Result(task_id="x", value=2))
        result = await backend.get_result("x")
        assert result is not None
        assert result.value == 2

    async def test_results_keep_every_field(self, backend: Backend) -> None:
        """A failure comes back with its error, traceback, reason, attempts and times."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        moment = datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
        given = dataclasses.replace(
            self.failure("x", "ValueError: ünï ∞"),
            attempts=3,
            enqueued_at=moment,
            started_at=moment,
            finished_at=moment,
        )
        await backend.store_result("x", given)
        found = await backend.get_result("x")
        assert found is not None
        for field in ("task_id", "status", "error", "traceback", "reason", "attempts"):
            assert getattr(found, field) == getattr(given, field), field
        for field in ("enqueued_at", "started_at", "finished_at"):
            read = getattr(found, field)
            assert read.utcoffset() == timedelta(0), field
            assert abs(read - moment) < timedelta(milliseconds=1), field

    async def test_errors_of_any_text_are_kept(self, backend: Backend) -> None:
        """An error may hold what is no text elsewhere, half a surrogate pair or NUL; it ends the task all the same."""
        odd = "ValueError: no file caf\udce9 \0 at all"
        task_id = await self.put_one(backend)
        task = await self.take_one(backend)
        assert await backend.settle([Outcome.failed(task_id, task.fence, self.failure(task_id, odd))]) == [True]
        assert (await self.stored(backend, task_id)).status == "failed"
        for _ in range(2):
            result = await backend.get_result(task_id)
            assert result is not None
            for text in (result.error, result.traceback):
                assert text is not None
                assert "ValueError: no file caf" in text
                assert text.endswith("at all")
            await backend.store_result(task_id, self.failure(task_id, odd))

    async def test_values_come_back_as_they_were(self, backend: Backend) -> None:
        """None, nested, large and odd values survive the store, as arguments and as results."""
        values = [None, {"a": [1, (2, 3)], "ü": "∞"}, b"\x00\xff" * 50_000, datetime(2030, 1, 1, tzinfo=UTC), 2**70]
        for number, value in enumerate(values):
            await backend.enqueue_task(Task(id=f"x{number}"), add, (value,), {"b": value})
            await backend.store_result(f"x{number}", Result(task_id=f"x{number}", value=value))
        for task in await backend.reserve_task("w", len(values)):
            result = await backend.get_result(task.id)
            assert result is not None
            value = values[int(task.id[1:])]
            assert (task.args, task.kwargs, result.value) == ((value,), {"b": value}, value)

    async def test_times_are_aware_utc(self, backend: Backend) -> None:
        """`created_at` and `eta` come back as aware datetimes in UTC."""
        made, eta = utcnow(), datetime.now(UTC).astimezone() + timedelta(seconds=0)
        await backend.enqueue_task(Task(id="x", created_at=made, eta=eta.astimezone(UTC)), add, (1, 2), {})
        task = await self.stored(backend, "x")
        for given, read in ((made, task.created_at), (eta, task.eta)):
            assert read is not None
            assert read.utcoffset() == timedelta(0)
            assert abs(read - given) < timedelta(milliseconds=1)

    async def test_options_and_eta_are_kept(self, backend: Backend) -> None:
        """What a task says about how it is to be run comes back with `get_task`."""
        eta = utcnow() + timedelta(days=3)
        options = TaskOptions(timeout=7.5, retention=60.0, context={"trace": "t-1"})
        await backend.enqueue_task(Task(id="x", eta=eta, options=options), add, (1, 2), {})
        task = await self.stored(backend, "x")
        assert task.eta is not None
        assert abs(task.eta - eta) < timedelta(milliseconds=1)
        assert task.options is not None
        assert (task.options.timeout, task.options.retention) == (7.5, 60.0)
        assert dict(task.options.context) == {"trace": "t-1"}

    async def test_writes_to_unknown_ids_fail(self, backend: Backend) -> None:
        """A result or a status for an id the store does not know is a `TaskNotFoundError`."""
        with pytest.raises(TaskNotFoundError):
            await backend.store_result("nobody", Result(task_id="nobody", value=1))
        with pytest.raises(TaskNotFoundError):
            await backend.update_task_status("nobody", "completed")
        assert await backend.get_task("nobody") is None

    @pytest.mark.parametrize("word", ["done", "", "QUEUED", "cancelled"])
    async def test_bad_status_is_refused(self, backend: Backend, word: str) -> None:
        """A word that is none of the four is a `ValidationError`, and changes nothing."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        with pytest.raises(ValidationError):
            await backend.update_task_status("x", word)
        assert (await self.stored(backend, "x")).status == "queued"

    @pytest.mark.parametrize(
        ("old", "new"),
        [("completed", "failed"), ("completed", "running"), ("failed", "completed"), ("failed", "running")],
    )
    async def test_forbidden_moves_are_refused(self, backend: Backend, old: str, new: str) -> None:
        """A finished task can only be queued again: everything else is an `InvalidTransitionError`."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.update_task_status("x", old)
        with pytest.raises(InvalidTransitionError):
            await backend.update_task_status("x", new)
        assert (await self.stored(backend, "x")).status == old

    @pytest.mark.parametrize("status", ["queued", "running", "completed", "failed"])
    async def test_same_status_changes_nothing(self, backend: Backend, status: str) -> None:
        """Setting the status a task has is accepted, and changes nothing."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.update_task_status("x", status)
        before = await self.stored(backend, "x")
        before = dataclasses.replace(before)
        await backend.update_task_status("x", status)
        after = await self.stored(backend, "x")
        assert (after.status, after.fence, after.attempt) == (before.status, before.fence, before.attempt)

    @pytest.mark.parametrize("status", ["running", "completed", "failed"])
    async def test_queued_again_is_reservable_again(self, backend: Backend, status: str) -> None:
        """`update_task_status(id, "queued")` makes a running or finished task reservable again, once."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.reserve_task("w")
        await backend.update_task_status("x", status)
        await backend.update_task_status("x", "queued")
        assert (await self.stored(backend, "x")).status == "queued"
        (task,) = await backend.reserve_task("v", 10)
        assert (task.id, task.args) == ("x", (1, 2))
        assert await backend.reserve_task("u") == []

    @pytest.mark.parametrize("status", ["running", "completed", "failed"])
    async def test_only_queued_tasks_are_reserved(self, backend: Backend, status: str) -> None:
        """A task an operator has moved out of `queued` is not handed out."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.enqueue_task(Task(id="y"), add, (1, 2), {})
        await backend.update_task_status("x", status)
        assert [task.id for task in await backend.reserve_task("w", 10)] == ["y"]
        assert (await self.stored(backend, "x")).status == status

    async def test_connect_again_is_harmless(self, backend: Backend) -> None:
        """`connect` on an open backend loses nothing."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        await backend.connect()
        assert [task.id for task in await backend.reserve_task("w")] == ["x"]

    async def test_close_again_is_harmless(self, backend: Backend) -> None:
        """`close` may be called twice, and before `connect`'s second call."""
        await backend.close()
        await backend.close()

    @requires("sabotage")
    async def test_driver_errors_are_backend_errors(self, backend: Backend) -> None:
        """What the store cannot do is a `BackendError` with the driver's error as its cause."""
        await backend.enqueue_task(Task(id="x"), add, (1, 2), {})
        self.sabotage(backend)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "enqueue_task": lambda: backend.enqueue_task(Task(id="y"), add, (1, 2), {}),
            "reserve_task": lambda: backend.reserve_task("w"),
            "get_task": lambda: backend.get_task("x"),
            "update_task_status": lambda: backend.update_task_status("x", "completed"),
            "store_result": lambda: backend.store_result("x", Result(task_id="x", value=1)),
            "get_result": lambda: backend.get_result("x"),
        }
        for name, call in calls.items():
            with pytest.raises(BackendError) as caught:
                await call()
            assert caught.value.__cause__ is not None, name
