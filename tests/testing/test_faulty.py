"""The fault-injecting backend does to each call what its plan says, and the same again for the same seed."""

import inspect

import pytest

from sitq import MemoryBackend, Result, Task
from sitq.backends.base import Backend
from sitq.core import WorkerInfo
from sitq.testing import Fault, FaultyBackend, InjectedError


def add(a: int, b: int) -> int:
    return a + b


def test_every_method_of_the_contract_is_wrapped() -> None:
    public = {name for name, value in vars(Backend).items() if inspect.isfunction(value) and not name.startswith("_")}
    helpers = {"default_serializer"}
    assert public - helpers <= set(vars(FaultyBackend)), public - helpers - set(vars(FaultyBackend))


async def test_raise_does_nothing_and_raise_after_does_all() -> None:
    async with FaultyBackend(MemoryBackend(), {"enqueue_task": {0: Fault.RAISE, 1: Fault.RAISE_AFTER}}) as backend:
        for task_id in ("a", "b"):
            with pytest.raises(InjectedError):
                await backend.enqueue_task(Task(id=task_id), add, (1, 2), {})
        await backend.enqueue_task(Task(id="c"), add, (1, 2), {})
        assert [await backend.get_task(task_id) is not None for task_id in "abc"] == [False, True, True]
        assert [fault for _, _, fault in backend.injected] == [Fault.RAISE, Fault.RAISE_AFTER]


async def test_delay_does_all() -> None:
    async with FaultyBackend(MemoryBackend(), lambda method, number: Fault.DELAY, delay=0.001) as backend:
        await backend.enqueue_task(Task(id="a"), add, (1, 2), {})
        await backend.store_result("a", Result(task_id="a", value=1))
        assert await backend.get_task("a") is not None


async def test_a_seed_repeats_itself() -> None:
    stories = []
    for _ in range(2):
        backend = FaultyBackend(MemoryBackend(), seed=3, rate=0.5)
        for _ in range(20):
            try:
                await backend.reserve(WorkerInfo(id="w"), 1)
            except InjectedError:
                continue
        stories.append(list(backend.injected))
    assert stories[0] == stories[1]
    assert 3 < len(stories[0]) < 17


async def test_clones_share_the_plan() -> None:
    async with FaultyBackend(MemoryBackend(), {"get_task": {1: Fault.RAISE}}) as backend:
        await backend.get_task("a")
        with pytest.raises(InjectedError):
            await backend.clone().get_task("a")
