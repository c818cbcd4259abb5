"""Group commit, without a store: which operations share a batch, and who hears what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sitq._group_commit import MAX_BYTES, MAX_OPERATIONS, CommitThread, Lane, Lanes, Operation
from sitq.exceptions import BackendError
from waiting import until


class Store:
    """An executor that keeps the batches it was given; `gate` holds it at its first batch."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.bad: set[Any] = set()
        self.broken: Exception | None = None
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.is_closed = False
        self.suspended = 0

    def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        self.begun.set()
        self.gate.wait(60)
        work = [operation.work for operation in batch]
        self.batches.append(work)
        if self.broken is not None:
            raise self.broken
        if self.bad.intersection(work):
            raise ValueError("bad data")
        return [KeyError(item) if item == "answer" else f"did {item}" for item in work]

    def is_about_data(self, error: Exception) -> bool:
        return isinstance(error, ValueError)

    def explain(self, error: Exception) -> BackendError:
        explained = BackendError(f"explained: {error}")
        explained.__cause__ = error
        return explained

    def tidy(self) -> None:
        """Nothing waits."""

    def suspend(self) -> None:
        self.suspended += 1

    def close(self) -> None:
        self.is_closed = True


class Driven:
    """A store with its thread, for the length of a test."""

    def __init__(self) -> None:
        self.store = Store()
        self.thread = CommitThread(lambda: self.store, "test")

    async def __aenter__(self) -> Self:
        self.thread.start()
        await asyncio.wrap_future(self.thread.opened)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.store.gate.set()
        self.thread.stop()
        await asyncio.wrap_future(self.thread.closed)
        assert self.store.is_closed

    def ask(self, work: Any, lane: Lane = Lane.WORK, size: int = 0, unheard: Any = None) -> asyncio.Task[Any]:
        return asyncio.create_task(self.thread.run(Operation(lane, work, size, unheard)))

    async def hold(self) -> asyncio.Task[Any]:
        """Keep the thread busy with one operation until `store.gate` opens."""
        self.store.gate.clear()
        first = self.ask("first")
        await asyncio.to_thread(self.store.begun.wait, 60)
        return first


async def test_what_comes_during_a_commit_shares_the_next_one() -> None:
    async with Driven() as driven:
        first = await driven.hold()
        others = [driven.ask(number) for number in range(20)]
        await asyncio.sleep(0)
        driven.store.gate.set()
        assert await asyncio.gather(first, *others) == ["did first", *[f"did {number}" for number in range(20)]]
    assert driven.store.batches == [["first"], list(range(20))]


async def test_what_one_turn_of_the_loop_asks_shares_a_commit() -> None:
    """Also when the thread is idle: it is woken once, for all of it."""
    async with Driven() as driven:
        await asyncio.gather(*(driven.ask(number) for number in range(20)))
    assert driven.store.batches == [list(range(20))]


async def test_what_is_asked_in_the_turn_that_stops_is_done() -> None:
    async with Driven() as driven:
        last = driven.ask("last")
        await asyncio.sleep(0)
        driven.thread.stop()
        assert await last == "did last"


async def test_one_bad_operation_fails_alone() -> None:
    async with Driven() as driven:
        driven.store.bad.add(3)
        await driven.hold()
        others = [driven.ask(number) for number in range(6)]
        await asyncio.sleep(0)
        driven.store.gate.set()
        answers = await asyncio.gather(*others, return_exceptions=True)
    assert isinstance(answers[3], BackendError)
    assert isinstance(answers[3].__cause__, ValueError)
    assert answers[:3] + answers[4:] == ["did 0", "did 1", "did 2", "did 4", "did 5"]
    assert driven.store.batches[1:] == [[0, 1, 2, 3, 4, 5], [0], [1], [2], [3], [4], [5]]


async def test_a_broken_store_fails_all_each_with_its_own_error() -> None:
    async with Driven() as driven:
        await driven.hold()
        others = [driven.ask(number) for number in range(3)]
        await asyncio.sleep(0)
        driven.store.broken = OSError("no disk")
        driven.store.gate.set()
        answers = await asyncio.gather(*others, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["explained: no disk"] * 3
    assert len({id(answer) for answer in answers}) == 3
    assert driven.store.batches[1:] == [[0, 1, 2]]  # one by one would be no better


async def test_an_exception_among_the_results_is_an_answer() -> None:
    async with Driven() as driven:
        with pytest.raises(KeyError):
            await driven.ask("answer")


async def test_a_waiter_that_is_gone_is_skipped() -> None:
    async with Driven() as driven:
        await driven.hold()
        gone, stays = driven.ask("gone"), driven.ask("stays")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        driven.store.gate.set()
        assert await stays == "did stays"
    assert driven.store.batches[1:] == [["stays"]]


async def test_a_result_nobody_waits_for_is_handed_back() -> None:
    unheard: list[Any] = []
    async with Driven() as driven:
        driven.store.gate.clear()
        gone = driven.ask("gone", unheard=unheard.append)
        await asyncio.to_thread(driven.store.begun.wait, 60)  # it is too late to skip it
        gone.cancel()
        await asyncio.sleep(0)
        driven.store.gate.set()
        await driven.ask("another")
    assert unheard == ["did gone"]


async def test_a_result_that_meets_a_cancellation_is_handed_back() -> None:
    unheard: list[Any] = []
    operation: Operation[Any] = Operation(Lane.WORK, "work", 0, unheard.append)
    operation.bind()
    waiting = asyncio.create_task(operation.answer())
    await asyncio.sleep(0)
    operation.resolve("result", None)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert unheard == ["result"]


async def test_a_result_for_a_closed_loop_is_handed_back() -> None:
    unheard: list[Any] = []
    async with Driven() as driven:
        driven.store.gate.clear()

        async def ask_and_leave() -> None:
            operation: Operation[Any] = Operation(Lane.WORK, "left", 0, unheard.append)
            operation.bind()
            driven.thread.submit([operation])

        await asyncio.to_thread(lambda: asyncio.run(ask_and_leave()))
        driven.store.gate.set()
        await driven.ask("another")
    assert unheard == ["did left"]


async def test_stopping_finishes_what_was_handed_in_and_refuses_the_rest() -> None:
    async with Driven() as driven:
        await driven.hold()
        late = driven.ask("late")
        await asyncio.sleep(0)
        driven.thread.stop()
        driven.store.gate.set()
        assert await late == "did late"
        await asyncio.wrap_future(driven.thread.closed)
        with pytest.raises(BackendError, match="connect to it again"):
            await driven.ask("too late")


async def test_a_store_that_does_not_open_answers_with_the_reason() -> None:
    def fail() -> Store:
        raise OSError("no such folder")

    thread = CommitThread(fail, "test")

    def ask() -> Coroutine[Any, Any, Any]:
        operation: Operation[Any] = Operation(Lane.WORK, "work")
        return thread.run(operation)

    asked = asyncio.create_task(ask())
    await asyncio.sleep(0)
    thread.start()
    with pytest.raises(BackendError, match="no such folder") as caught:
        await asyncio.wrap_future(thread.opened)
    assert isinstance(caught.value.__cause__, OSError)
    for waiting in (asked, ask()):
        with pytest.raises(BackendError, match="no such folder"):
            await waiting


# --- lanes ------------------------------------------------------------------------------------------------------------


class _Waits:
    def cancelled(self) -> bool:
        return False


def operation_of(lane: Lane, work: int, size: int) -> Operation[Any]:
    operation: Operation[Any] = Operation(lane, work, size)
    waits: Any = _Waits()
    operation.future = waits
    return operation


@given(st.lists(st.tuples(st.sampled_from(Lane), st.integers(0, 6 * 1024 * 1024)), max_size=1200))
def test_batches_keep_the_order_of_a_lane_and_the_limits(load: list[tuple[Lane, int]]) -> None:
    lanes = Lanes()
    operations = [operation_of(lane, number, size) for number, (lane, size) in enumerate(load)]
    for operation in operations:
        lanes.add(operation)
    taken = []
    while batch := lanes.take():
        assert len(batch) <= MAX_OPERATIONS
        assert len(batch) == 1 or sum(operation.size for operation in batch) <= MAX_BYTES
        taken += batch
    for lane in Lane:
        assert [o.work for o in taken if o.lane == lane] == [o.work for o in operations if o.lane == lane]


def test_a_flood_in_one_lane_leaves_half_a_batch_to_the_other() -> None:
    lanes = Lanes()
    for number in range(2000):
        lanes.add(operation_of(Lane.ACCEPT, number, 1024))
    lanes.add(operation_of(Lane.WORK, -1, 1024))
    assert -1 in [operation.work for operation in lanes.take()]


def test_a_large_operation_is_not_starved_by_small_ones_of_the_other_lane() -> None:
    lanes = Lanes()
    lanes.add(operation_of(Lane.ACCEPT, -1, MAX_BYTES))
    batches = []
    for _ in range(4):
        lanes.add(operation_of(Lane.WORK, 1, 1024))
        batches.append([operation.work for operation in lanes.take()])
    assert [-1] in batches


async def test_a_pause_waits_for_the_batch_and_holds_up_the_next() -> None:
    async with Driven() as driven:
        driven.store.gate.clear()
        first: asyncio.Task[Any] = asyncio.create_task(driven.thread.run(Operation(Lane.WORK, "a")))
        await asyncio.to_thread(driven.store.begun.wait, 60)
        assert not driven.thread.pause(0.01)
        assert driven.store.suspended == 0
        driven.store.gate.set()
        assert await first == "did a"
        assert driven.thread.pause(60)
        assert driven.store.suspended == 1
        second: asyncio.Task[Any] = asyncio.create_task(driven.thread.run(Operation(Lane.WORK, "b")))
        await asyncio.sleep(0.02)
        assert driven.store.batches == [["a"]]
        driven.thread.resume()
        assert await second == "did b"


async def test_a_thread_that_dies_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", died.append)

    class Dying(Store):
        def tidy(self) -> None:
            raise SystemExit  # which nothing catches

    thread = CommitThread(Dying, "dying")
    operations: list[Operation[Any]] = [Operation(Lane.WORK, number, MAX_BYTES) for number in range(3)]  # a batch each
    answers = [operation.bind() for operation in operations]
    thread.submit(operations)
    thread.start()
    async with asyncio.timeout(60):
        found = await asyncio.gather(*answers, return_exceptions=True)
    assert found[0] == "did 0"
    assert ["connect to it again" in str(answer) for answer in found[1:]] == [True, True]
    await until(lambda: len(died) == 1, "the end of the thread")
