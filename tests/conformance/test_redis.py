"""The conformance suite over a real Valkey and a real Redis 6.2."""

from collections.abc import Callable

import pytest

from servers.redis import fresh_redis, redis_url
from sitq.backends.base import Backend
from sitq.backends.redis import RedisBackend
from sitq.conformance import BackendSuite


@pytest.fixture(scope="module", autouse=True)
def servers() -> None:
    """Start them before the first test counts its child processes."""
    for kind in ("valkey", "redis"):
        redis_url(kind)


class TestValkey(BackendSuite):
    kind = "valkey"
    persistent = True

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return fresh_redis(self.kind, retry_for=0.0)

    def advance(self, backend: Backend, seconds: float) -> None:
        assert isinstance(backend, RedisBackend)
        backend._settings.offset += round(seconds * 1_000_000)

    def sabotage(self, backend: Backend) -> None:
        assert isinstance(backend, RedisBackend)
        backend._settings.address["port"] = 1  # nobody listens there
        (store,) = backend._stores.values()
        for line in (store._read_line, store._write_line):
            if line._connection is not None:
                line._connection._writer.transport.abort()  # type: ignore[union-attr]


class TestRedis(TestValkey):
    kind = "redis"
