"""The conformance suite over a real Valkey and a real Redis 6.2."""

from collections.abc import Callable, Iterator

import pytest

from redis_store.keys import keys_out_of_place
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
    def make_backend(self) -> Iterator[Callable[[], Backend]]:
        make = fresh_redis(self.kind, retry_timeout=0.0)
        yield make
        assert not keys_out_of_place(redis_url(self.kind), make.keywords["namespace"])

    def advance(self, backend: Backend, seconds: float) -> None:
        assert isinstance(backend, RedisBackend)
        backend._settings.offset += round(seconds * 1_000_000)

    def sabotage(self, backend: Backend) -> None:
        assert isinstance(backend, RedisBackend)
        backend._settings.url = "redis://127.0.0.1:1/0"  # nobody listens there
        (store,) = backend._stores.values()
        for line in (store._read_line, store._reserve_line, store._write_line):
            if line.connection is not None:
                line.connection._writer.transport.abort()  # type: ignore[union-attr]


class TestRedis(TestValkey):
    kind = "redis"
