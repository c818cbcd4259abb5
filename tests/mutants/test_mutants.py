"""Every store that is broken on purpose is caught by the test that it names; a sound store passes that test."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from conformance.test_memory import TestMemory as Suite
from mutants import broken_moves, broken_rest
from sitq import MemoryBackend
from sitq.conformance import _kit, wakeup

MUTANTS = [
    mutant
    for module in (broken_moves, broken_rest)
    for mutant in vars(module).values()
    if inspect.isclass(mutant) and mutant.__module__ == module.__name__
]


def check_of(mutant: type[MemoryBackend]) -> Callable[[MemoryBackend], Awaitable[None]]:
    """Return the test a mutant names, with its parameters."""
    match = re.fullmatch(r"(\w+)(?:\[([\w-]+)\])?", mutant.__doc__ or "")
    assert match is not None
    test: Any = getattr(Suite(), match[1])
    values = (match[2] or "").split("-") if match[2] else []
    names = [name for name in inspect.signature(test).parameters if name != "backend"]
    return lambda backend: test(backend=backend, **dict(zip(names, values, strict=True)))


async def run_check(make: type[MemoryBackend], check: Callable[[MemoryBackend], Awaitable[None]]) -> None:
    async with asyncio.timeout(20), make() as backend:
        await check(backend)


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 20
    assert len({mutant.__doc__ for mutant in MUTANTS}) > len(MUTANTS) * 0.9


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught(mutant: type[MemoryBackend], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kit, "PATIENCE", 1.0)
    monkeypatch.setattr(wakeup, "PATIENCE", 1.0)
    check = check_of(mutant)
    asyncio.run(run_check(MemoryBackend, check))  # the same check passes where nothing is broken
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception, TimeoutError)):
        asyncio.run(run_check(mutant, check))
