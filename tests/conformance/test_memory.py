"""The conformance suite over the reference store, whole and reduced to the six methods."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from conformance.stores import SixMethods
from sitq import MemoryBackend
from sitq.backends.base import Backend
from sitq.conformance import BackendSuite


class TestMemory(BackendSuite):
    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return MemoryBackend

    def advance(self, backend: Backend, seconds: float) -> None:
        assert isinstance(backend, MemoryBackend)
        backend._store.clock_offset += seconds

    def transaction(self, backend: Backend) -> AbstractAsyncContextManager[Any]:
        assert isinstance(backend, MemoryBackend)
        return _transaction(backend)


@asynccontextmanager
async def _transaction(backend: MemoryBackend) -> AsyncIterator[Any]:
    with backend.transaction() as connection:
        yield connection


class TestSixOnly(BackendSuite):
    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return SixMethods
