"""What `enqueue`, `options` and `enqueue_many` take, refuse and store."""

from __future__ import annotations

import pickle
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from sitq import (
    Event,
    MemoryBackend,
    PartialEnqueueError,
    PayloadTooLargeError,
    Retry,
    SerializationError,
    SitqError,
    TaskHandle,
    TaskQueue,
    UnsupportedError,
    ValidationError,
    Worker,
    task,
)
from sitq.backends.base import Backend, Capability


async def add(a: int, b: int = 2) -> int:
    return a + b


async def appointment(eta: str, *, queue: str = "", priority: int = 0, function: str = "") -> str:
    return f"{eta} {queue} {priority} {function}"


@task(queue="mail", priority=7, retry=4, timeout=9, retention=60)
async def mail() -> None: ...


class Weird:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


async def test_the_handle_is_the_id_as_text(queue: TaskQueue) -> None:
    handle = await queue.enqueue(add, 1)
    assert isinstance(handle, str)
    assert handle.created
    assert type(pickle.loads(pickle.dumps(handle))) is str
    assert repr(handle) == f"TaskHandle({str(handle)!r})"
    stored = await queue.get_task(handle)
    assert stored is not None
    assert (stored.id, stored.status, stored.attempt) == (handle, "queued", 0)
    assert stored.name == "test_enqueue:add"


async def test_ids_grow_with_time(queue: TaskQueue) -> None:
    ids = [await queue.enqueue(add, n) for n in range(5)]
    assert len(set(ids)) == 5
    assert [handle[:8] for handle in ids] == sorted(handle[:8] for handle in ids)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"c": 3}), ((1, 2), {"b": 3})], ids=str)
async def test_arguments_are_bound_at_once(queue: TaskQueue, args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"add.* cannot be called like this"):
        await queue.enqueue(add, *args, **kwargs)


@pytest.mark.parametrize("function", [5, None, "add"])
async def test_only_functions_can_be_enqueued(queue: TaskQueue, function: Any) -> None:
    with pytest.raises(ValidationError, match="pass f, not f"):
        await queue.enqueue(function)


async def test_options_never_take_a_name_from_the_functions_own(queue: TaskQueue) -> None:
    with pytest.raises(ValidationError, match=r"use queue.options\(eta=…\)"):
        await queue.enqueue(appointment, eta=datetime.now(UTC))
    handle = await queue.options(queue="q", priority=3).enqueue(
        appointment, eta="noon", queue="mine", priority=1, function="f"
    )
    async with Worker(queue):
        assert await handle.result(timeout=60) == "noon mine 1 f"
    stored = await queue.get_task(handle)
    assert stored is not None
    assert stored.options is not None
    assert (stored.options.queue, stored.options.priority) == ("q", 3)


async def test_eta_must_be_aware_and_is_kept_in_utc(queue: TaskQueue) -> None:
    with pytest.raises(ValidationError, match="no time zone"):
        await queue.enqueue(add, 1, eta=datetime(2030, 1, 1))  # noqa: DTZ001
    moment = datetime(2031, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    for handle in (await queue.enqueue(add, 1, eta=moment), await queue.options(eta=moment).enqueue(add, 1)):
        stored = await queue.get_task(handle)
        assert stored is not None
        assert stored.eta == moment
        assert stored.eta is not None
        assert stored.eta.tzinfo is UTC


@pytest.mark.parametrize(
    "values",
    [
        {"priority": 10},
        {"priority": True},
        {"priority": 1.5},
        {"queue": ""},
        {"queue": "a\nb"},
        {"queue": 5},
        {"queue": "a,b"},
        {"queue": "mail:2"},
        {"queue": " mail"},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": "soon"},
        {"delay": 1, "eta": datetime(2030, 1, 1, tzinfo=UTC)},
        {"eta": "tomorrow"},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"retry": 0},
        {"retry": 1.5},
        {"retry": -2},
        {"retry": "twice"},
        {"retry": True},
        {"unique": ""},
        {"unique_for": 5},
        {"executor": "gpu"},
        {"retention": -1},
        {"expires": datetime(2030, 1, 1)},  # noqa: DTZ001
        pytest.param({"context": {"a": object()}}, id="context-object"),
        {"context": {1: 2}},
        {"context": [1]},
        {"colour": "red"},
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(values: dict[str, Any]) -> None:
    queue = TaskQueue(MemoryBackend())
    with pytest.raises(ValidationError, match=next(iter(values)) + r"|delay or eta|Retry"):
        queue.options(**values)


@pytest.mark.parametrize("name", ["eta", "delay", "unique", "connection"])
def test_the_decorator_refuses_what_belongs_to_one_enqueue(name: str) -> None:
    with pytest.raises(ValidationError, match="is no option here"):
        task(**{name: None})  # type: ignore[call-overload]


async def test_the_decorators_options_are_defaults(queue: TaskQueue) -> None:
    first = await queue.get_task(await queue.enqueue(mail))
    second = await queue.get_task(await queue.options(priority=1, retry=Retry(max_attempts=2)).enqueue(mail))
    assert first is not None
    assert second is not None
    assert first.options is not None
    assert second.options is not None
    assert first.options.retry == Retry(max_attempts=4)
    assert (first.options.queue, first.options.priority, first.options.timeout) == ("mail", 7, 9.0)
    assert (second.options.queue, second.options.priority, second.options.timeout) == ("mail", 1, 9.0)
    assert second.options.retry == Retry(max_attempts=2)


async def test_expiry_counts_from_the_enqueue(queue: TaskQueue) -> None:
    before = datetime.now(UTC)
    handle = await queue.options(expires=timedelta(minutes=1)).enqueue(add, 1)
    stored = await queue.get_task(handle)
    assert stored is not None
    assert stored.options is not None
    assert stored.options.expires_at is not None
    assert before <= stored.options.expires_at - timedelta(minutes=1) <= datetime.now(UTC)


async def test_what_cannot_be_encoded_is_refused_and_nothing_is_stored(queue: TaskQueue) -> None:
    with pytest.raises(SerializationError, match=r"cannot pickle the arguments of test_enqueue:add"):
        await queue.enqueue(add, Weird())  # type: ignore[call-overload]
    with pytest.raises(PayloadTooLargeError, match="over the limit"):
        await queue.enqueue(add, b"x" * 2**20)  # type: ignore[call-overload]
    assert not await queue.backend.count_tasks()


async def test_the_limit_can_be_raised() -> None:
    async with TaskQueue(MemoryBackend(), max_payload=2**22) as queue:
        assert await queue.enqueue(add, b"x" * 2**20)  # type: ignore[call-overload]


async def test_many_calls_positional_and_by_keyword(queue: TaskQueue) -> None:
    handles = await queue.enqueue_many(add, [(1,), [1, 5], {"a": 2, "b": 2}])
    async with Worker(queue):
        assert [await handle.result(timeout=60) for handle in handles] == [3, 6, 4]


async def test_many_calls_go_in_chunks_and_the_error_has_what_was_stored(queue: TaskQueue) -> None:
    with pytest.raises(PartialEnqueueError) as caught:
        await queue.enqueue_many(add, [*[(n,) for n in range(2_300)], ()])
    assert len(caught.value.accepted) == 2_000
    assert all(isinstance(handle, TaskHandle) for handle in caught.value.accepted)
    assert isinstance(caught.value.__cause__, ValidationError)
    (counts,) = await queue.backend.count_tasks()
    assert counts.phases == {"ready": 2_000}
    assert pickle.loads(pickle.dumps(caught.value)).accepted == caught.value.accepted


async def test_many_calls_with_an_early_error_raise_it_plainly(queue: TaskQueue) -> None:
    with pytest.raises(ValidationError, match="each call is a tuple"):
        await queue.enqueue_many(add, ["ab"])
    with pytest.raises(ValidationError, match="cannot be called like this"):
        await queue.enqueue_many(add, [(1,), ()])
    assert not await queue.backend.count_tasks()


async def test_large_payloads_make_smaller_chunks(queue: TaskQueue) -> None:
    handles = await queue.enqueue_many(add, [(b"x" * 900_000,)] * 6)
    assert len(set(handles)) == 6


async def test_enqueued_is_told_once_per_new_task(queue: TaskQueue) -> None:
    told: list[Event] = []
    queue.on("enqueued", told.append)
    first = await queue.options(unique="k").enqueue(add, 1)
    second = await queue.options(unique="k").enqueue(add, 1)
    assert second == first
    assert not second.created
    assert [(event.task_id, event.task_name) for event in told] == [(first, "test_enqueue:add")]


async def test_the_transaction_of_another_store_is_refused(queue: TaskQueue) -> None:
    with pytest.raises(SitqError, match=r"onnection|TRANSACTION"):
        await queue.options(connection=object()).enqueue(add, 1)


def test_a_queue_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match=r"current_task\(\).queue"):
        pickle.dumps(TaskQueue(MemoryBackend()))


def test_a_queue_needs_a_backend() -> None:
    with pytest.raises(ValidationError, match="needs a Backend or a URL"):
        TaskQueue(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "match"),
    [("tasks.db", "sqlite:///tasks.db"), ("carrier-pigeon://x", "no backend for"), ("memory://host", "no address")],
)
def test_bad_urls_say_what_to_write(url: str, match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        TaskQueue(url)


class Plain(MemoryBackend):
    capabilities = MemoryBackend.capabilities & ~(Capability.QUEUES | Capability.UNIQUE)


@pytest.mark.parametrize("values", [{"queue": "a"}, {"priority": 1}, {"unique": "k"}], ids=str)
async def test_options_the_store_cannot_honour_are_refused(values: dict[str, Any]) -> None:
    async with TaskQueue(Plain()) as queue:
        with pytest.raises(UnsupportedError, match=r"QUEUES|UNIQUE"):
            await queue.options(**values).enqueue(add, 1)


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


async def whose() -> str:
    return tenant.get()


async def test_named_context_variables_travel_with_the_task(backend: Backend) -> None:
    async with TaskQueue(backend, contextvars=[tenant]) as queue:
        tenant.set("acme")
        handle = await queue.enqueue(whose)
        tenant.set("other")
        async with Worker(queue):
            assert await handle.result(timeout=60) == "acme"


async def test_context_variables_must_hold_plain_data(backend: Backend) -> None:
    odd: ContextVar[object] = ContextVar("odd")
    odd.set(object())
    async with TaskQueue(backend, contextvars=[odd]) as queue:
        with pytest.raises(ValidationError, match="plain data"):
            await queue.enqueue(whose)
